"""Choose: mode, levels, colour and candidates of every layer, at least modelled cost within a quality budget."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from spectral_convert.converted import Choice, ConvertedLayer
from spectral_convert.costs import dense_cost, prefilter_cost
from spectral_convert.recipe import Budget

LADDER = ((1, 0), (2, 0), (3, 0), (4, 0), (4, 4), (4, 8), (4, 12), (4, 24), (4, 32))
"""Levels and colour that are tried, coarse to fine."""
ROUNDS = 5
"""Plans that are measured before layers fall back to their gates one by one."""
AIM = 0.8
"""Share of the budget a plan aims at: the text it is measured on is not the text it will meet."""
ENOUGH = 0.6
"""A plan that uses this share of the budget is not made cheaper."""
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Option:
    """One way to run one layer."""

    layer: ConvertedLayer
    choice: Choice
    cost: float
    """Modelled, as `costs` counts."""
    missed: float
    """Mean share of expert weight that is lost, on the certify split."""
    lost: float
    """1 - recall, on the certify split."""
    mean_candidates: float


@dataclass(frozen=True, slots=True)
class Chosen:
    """A plan for all layers, and how it came about."""

    layers: tuple[ConvertedLayer, ...]
    record: dict[str, Any]
    """The evidence: budget, choice and cost of every layer, what was measured on the certify split; empty without one."""


Measure = Callable[[Sequence[ConvertedLayer]], float]
"""Increase of perplexity in percent of these layers, on the certify split."""


def shapes(levels: int, colour: int) -> tuple[tuple[int, int], ...]:
    """The rungs of the ladder with at most the recipe's levels, and the recipe's own shape."""
    rungs = [shape for shape in LADDER if shape[0] <= levels]
    return tuple(dict.fromkeys([*rungs, (levels, colour)]))


def choose_layers(ladder: Sequence[Sequence[ConvertedLayer]], budget: Budget, measure: Measure) -> Chosen:
    """The cheapest plan within the budget.

    The cost of a plan is a sum over layers, and so, nearly, is what it loses: for a multiplier every layer takes the
    option of least cost plus multiplier times missed weight (Lagrange). How much missed weight the budget allows is not
    known beforehand: plans are measured on the certify split, and the allowance is corrected. What is still above
    the budget after that gives its worst layers back to their gates.

    Args:
        ladder: for each shape, the converted layers.
        budget: what is asked.
        measure: increase of perplexity in percent on the certify split; called only for a perplexity budget.
    """
    options = [list(_options(layers, budget)) for layers in zip(*ladder, strict=True)]
    if budget.min_recall is not None:
        least = budget.min_recall
        options = [[option for option in found if 1 - option.lost >= least] for found in options]
    if budget.max_increase is None:
        plan = [min(found, key=lambda option: option.cost) for found in options]
        return _chosen(plan, options, budget, [])
    rounds: list[dict[str, float]] = []
    plan = _within(options, budget.max_increase, measure, rounds)
    return _chosen(plan, options, budget, rounds)


def _options(shapes: Sequence[ConvertedLayer], budget: Budget) -> Iterator[Option]:
    """All options of one layer: its gate, and for each shape every useful number of candidates or margin."""
    rule, width = shapes[0].rule, int(shapes[0].site.weight.shape[1])
    gate = dense_cost(budget.target, width, rule.experts)
    yield Option(shapes[0], Choice("dense", 0, None), gate, 0.0, 0.0, float(rule.experts))
    for layer in shapes:
        rank = layer.geometry.rank
        for count in range(rule.top_k, rule.experts):
            cost = prefilter_cost(budget.target, width, rule.experts, rank, float(count))
            missed, lost = float(layer.curve.missed[count]), float(layer.curve.lost[count])
            if cost < gate:
                yield Option(layer, Choice("prefilter", count, None), cost, missed, lost, float(count))
        if not budget.adaptive or budget.min_recall is not None:  # recall is not counted for margins
            continue
        curve = layer.margins
        for at in range(0, len(curve.margins), 16):
            mean = float(curve.sizes[at])
            cost = prefilter_cost(budget.target, width, rule.experts, rank, mean)
            if cost < gate:
                choice = Choice("prefilter", curve.cap, float(curve.margins[at]))
                yield Option(layer, choice, cost, float(curve.missed[at]), 1.0, mean)


def _within(
    options: Sequence[Sequence[Option]], percent: float, measure: Measure, rounds: list[dict[str, float]]
) -> list[Option]:
    """Plans, measured and corrected until one is within the budget and near it."""
    allowance, best = 0.002 * len(options) * percent, [found[0] for found in options]
    for _ in range(ROUNDS):
        plan = _plan(options, allowance)
        increase = _measured(plan, measure, rounds)
        if increase <= percent and _cost(plan) <= _cost(best):
            best = plan
        if ENOUGH * percent <= increase <= percent:
            return best
        if all(option.choice.mode == "dense" for option in plan) and increase <= percent and allowance > 1.0:
            return best
        allowance *= float(np.clip(AIM * percent / max(increase, 1e-6), 0.1, 10.0))
    if all(option.choice.mode == "dense" for option in best):
        return _fall_back(plan, percent, measure, rounds)
    return best


def _fall_back(
    plan: list[Option], percent: float, measure: Measure, rounds: list[dict[str, float]]
) -> list[Option]:
    """The plan with its worst layers given back to their gates, half of those that are left at a time."""
    while any(option.choice.mode != "dense" for option in plan):
        converted = [i for i, option in enumerate(plan) if option.choice.mode != "dense"]
        worst = sorted(converted, key=lambda i: -plan[i].missed)[: (len(converted) + 1) // 2]
        plan = [_dense(option) if i in worst else option for i, option in enumerate(plan)]
        if _measured(plan, measure, rounds) <= percent:
            break
    return plan


def _dense(option: Option) -> Option:
    experts = option.layer.rule.experts
    return replace(
        option, choice=Choice("dense", 0, None), missed=0.0, lost=0.0, mean_candidates=float(experts)
    )


def _plan(options: Sequence[Sequence[Option]], allowance: float) -> list[Option]:
    """The cheapest options whose missed weight sums to the allowance at most, by bisection of the multiplier."""
    low, high = -12.0, 12.0
    for _ in range(60):
        middle = (low + high) / 2
        plan = _best(options, 10.0**middle)
        if sum(option.missed for option in plan) > allowance:
            low = middle
        else:
            high = middle
    return _best(options, 10.0**high)


def _best(options: Sequence[Sequence[Option]], multiplier: float) -> list[Option]:
    return [min(found, key=lambda option: option.cost + multiplier * option.missed) for found in options]


def _measured(plan: Sequence[Option], measure: Measure, rounds: list[dict[str, float]]) -> float:
    dense = all(option.choice.mode == "dense" for option in plan)
    increase = 0.0 if dense else measure(_layers(plan))
    missed = sum(option.missed for option in plan)
    rounds.append({"missed": missed, "cost": _cost(plan), "increase_pct": increase})
    logger.info("budget: missed weight %.5f in all costs %+.4f %% of perplexity", missed, increase)
    return increase


def _cost(plan: Sequence[Option]) -> float:
    return sum(option.cost for option in plan)


def _layers(plan: Sequence[Option]) -> tuple[ConvertedLayer, ...]:
    return tuple(replace(option.layer, choice=option.choice) for option in plan)


def _chosen(
    plan: Sequence[Option],
    options: Sequence[Sequence[Option]],
    budget: Budget,
    rounds: list[dict[str, float]],
) -> Chosen:
    gates = [found[0].cost for found in options]
    rows = [
        {
            "path": option.layer.site.path,
            **asdict(option.choice),
            "levels": 0 if option.choice.mode == "dense" else option.layer.geometry.levels,
            "colour": 0 if option.choice.mode == "dense" else option.layer.geometry.colours,
            "mean_candidates": option.mean_candidates,
            "cost": option.cost,
            "gate_cost": gate,
            "missed": option.missed,
            "recall": 1.0 - option.lost,
            "options": len(found),
        }
        for option, found, gate in zip(plan, options, gates, strict=True)
    ]
    record = {
        **asdict(budget),
        "layers": rows,
        "rounds": rounds,
        "cost": _cost(plan),
        "gate_cost": sum(gates),
    }
    return Chosen(_layers(plan), record)


def verdict(record: dict[str, Any], evaluation: dict[str, Any]) -> dict[str, Any]:
    """The record with whether the evaluate split bears the budget out, and by how much it does not."""
    over: dict[str, float] = {}
    if record["max_increase"] is not None:
        over["max_increase"] = evaluation["delta_pct"] - record["max_increase"]
    if record["min_recall"] is not None:
        over["min_recall"] = max(record["min_recall"] - layer["recall"] for layer in evaluation["layers"])
    return {**record, "over": over, "met": all(excess <= 0 for excess in over.values())}
