"""Budgets: the cheapest plan that holds, corrected by measurement, with the gates as the way back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from spectral_convert.choose import choose_layers, shapes, verdict
from spectral_convert.converted import Choice, ConvertedLayer
from spectral_convert.recipe import Budget, Recipe
from spectral_convert.risk import MarginCurve, RiskCurve
from spectral_runtime.errors import ConfigError
from spectral_runtime.gate import GateRule

EXPERTS, TOP_K, HIDDEN = 32, 4, 256


class Shape:
    def __init__(self, rank: int) -> None:
        self.rank, self.levels, self.colours = rank, rank // 3, 0


class Site:
    def __init__(self, number: int) -> None:
        self.path, self.weight = f"layers.{number}.gate", torch.zeros(EXPERTS, HIDDEN)


def layer(number: int, rank: int, hardness: float) -> ConvertedLayer:
    """A layer whose missed weight falls with C and rank."""
    count = np.arange(EXPERTS + 1)
    missed = np.exp(-rank * np.maximum(count - 1, 0) / (20 * hardness))
    missed[-1] = 0.0
    margins = MarginCurve(np.linspace(0, 1, 64), np.linspace(0.5, 0.0, 64), np.linspace(4, 30, 64), 30, 1000)
    curve = RiskCurve(missed, missed, 1000)
    parts: Any = (
        Site(number),
        GateRule(experts=EXPERTS, top_k=TOP_K),
        Shape(rank),
        (),
        None,
        curve,
        margins,
        None,
    )
    return ConvertedLayer(*parts)


@pytest.fixture
def ladder() -> list[list[ConvertedLayer]]:
    return [[layer(number, rank, 1 + number) for number in range(4)] for rank in (3, 6, 12, 24)]


def linear(slope: float) -> Any:
    """Perplexity rises with the weight missed, as it nearly does in models."""

    def measure(layers: Sequence[ConvertedLayer]) -> float:
        chosen = [(x, x.choice) for x in layers]
        return slope * sum(float(x.curve.missed[c.candidates]) for x, c in chosen if c and c.mode != "dense")

    return measure


def budget(**asked: Any) -> Budget:
    return Budget(**{"max_increase": None, "min_recall": None, "target": "cpu", "adaptive": False, **asked})


@pytest.mark.parametrize("slope", [0.3, 10.0, 400.0])
@pytest.mark.parametrize("percent", [0.05, 0.5, 5.0])
def test_plans_hold_and_use_the_budget(
    slope: float, percent: float, ladder: list[list[ConvertedLayer]]
) -> None:
    chosen = choose_layers(ladder, budget(max_increase=percent), linear(slope))
    assert linear(slope)(chosen.layers) <= percent
    assert chosen.record["cost"] < chosen.record["gate_cost"]
    assert len(chosen.record["rounds"]) <= 5


def test_a_larger_budget_is_never_dearer(ladder: list[list[ConvertedLayer]]) -> None:
    costs = [
        choose_layers(ladder, budget(max_increase=p), linear(20.0)).record["cost"] for p in (0.1, 1.0, 10.0)
    ]
    assert costs == sorted(costs, reverse=True)
    assert costs[0] > costs[-1]


def test_harder_layers_get_more(ladder: list[list[ConvertedLayer]]) -> None:
    rows = choose_layers(ladder, budget(max_increase=0.5), linear(20.0)).record["layers"]
    assert rows[0]["cost"] < rows[3]["cost"]


def test_nothing_allowed_leaves_the_gates(ladder: list[list[ConvertedLayer]]) -> None:
    chosen = choose_layers(ladder, budget(max_increase=0.0), linear(1e9))
    assert {x.choice for x in chosen.layers} == {Choice("dense", 0, None)}
    assert chosen.record["cost"] == chosen.record["gate_cost"]


def test_a_model_that_no_plan_serves_falls_back_layer_by_layer(ladder: list[list[ConvertedLayer]]) -> None:
    def measure(layers: Sequence[ConvertedLayer]) -> float:
        return 1.0 if any(x.choice and x.choice.mode != "dense" for x in layers[2:]) else 0.0

    chosen = choose_layers(ladder, budget(max_increase=0.5), measure)
    modes = [x.choice.mode for x in chosen.layers if x.choice]
    assert measure(chosen.layers) <= 0.5
    assert modes[2:] == ["dense", "dense"]


def test_recall_is_kept_in_every_layer(ladder: list[list[ConvertedLayer]]) -> None:
    def never(_: Sequence[ConvertedLayer]) -> float:
        raise AssertionError("a recall budget needs no model")

    for least in (0.9, 0.999):
        rows = choose_layers(ladder, budget(min_recall=least), never).record["layers"]
        assert all(row["recall"] >= least for row in rows)
    assert all(
        row["recall"] == 1.0 for row in choose_layers(ladder, budget(min_recall=1.0), never).record["layers"]
    )


def test_adaptive_sets_are_options(ladder: list[list[ConvertedLayer]]) -> None:
    rows = choose_layers(ladder, budget(max_increase=1e6, adaptive=True), linear(1.0)).record["layers"]
    assert any(row["margin"] is not None for row in rows) or all(row["candidates"] == TOP_K for row in rows)


def test_a_gpu_keeps_small_gates(ladder: list[list[ConvertedLayer]]) -> None:
    chosen = choose_layers(ladder, budget(max_increase=5.0, target="cuda"), linear(1.0))
    assert {x.choice.mode for x in chosen.layers if x.choice} == {"dense"}


def test_verdict_says_by_how_much() -> None:
    record = {"max_increase": 0.5, "min_recall": 0.99}
    layers = [{"recall": 0.995}, {"recall": 0.98}]
    over = verdict(record, {"delta_pct": 0.75, "layers": layers})
    assert not over["met"]
    assert over["over"] == pytest.approx({"max_increase": 0.25, "min_recall": 0.01})
    assert verdict(record, {"delta_pct": 0.4, "layers": layers[:1]})["met"]


def test_ladder_stops_at_what_the_recipe_allows() -> None:
    assert shapes(2, 0) == ((1, 0), (2, 0))
    assert (4, 12) in shapes(4, 0)
    assert shapes(6, 5)[-1] == (6, 5)


@pytest.mark.parametrize("text", ["-0.5%", "0.5", "half", "%", "nan%", "inf%"])
def test_budgets_are_percentages(text: str) -> None:
    with pytest.raises(
        ConfigError, match=r"recipe\.max_ppl_increase: expected a percentage of at least 0, such as 0\.5%"
    ):
        _ = Recipe(max_ppl_increase=text).budget


@pytest.mark.parametrize("recall", [0.0, -1.0, 1.5])
def test_recall_is_a_share(recall: float) -> None:
    with pytest.raises(ConfigError, match=r"recipe\.min_recall: expected a share above 0 and at most 1"):
        Recipe(min_recall=recall)


def test_a_budget_chooses_the_mode_itself() -> None:
    with pytest.raises(
        ConfigError, match="recipe budget: expected mode auto, which chooses, found mode prefilter"
    ):
        Recipe(max_ppl_increase="1%", mode="prefilter")
