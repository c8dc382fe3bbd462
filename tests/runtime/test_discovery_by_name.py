"""Routers of families whose classes record nothing, as in older transformers, are found by their names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from spectral_runtime.attaching import discovery
from spectral_runtime.attaching.contract import Answer
from spectral_runtime.attaching.load import load_base
from spectral_runtime.errors import ModelError

CHECKPOINT = Path(__file__).parents[2] / "recipes" / "demo" / "checkpoint"


def test_the_same_routers_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_base(CHECKPOINT)[0]
    recorded = [site.path for site in discovery.find_routers(model)]
    monkeypatch.setattr(discovery, "recorders", lambda model: ())
    assert [site.path for site in discovery.find_routers(model)] == recorded


def test_a_model_without_such_names_is_still_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_base(CHECKPOINT)[0]
    for layer in model.model.layers:
        layer.mlp.gate = layer.mlp.gate.__class__.__bases__[0]()
    monkeypatch.setattr(discovery, "recorders", lambda model: ())
    with pytest.raises(ModelError, match="found no Mixture-of-Experts layer"):
        discovery.find_routers(model)


class Gate(nn.Module):
    """Eight experts, the best two by their logits."""

    def __init__(self) -> None:
        super().__init__()
        self.top_k = 2
        self.weight = nn.Parameter(torch.randn(8, 4, generator=torch.Generator().manual_seed(0)))

    def chosen(self, hidden: torch.Tensor) -> Answer:
        logits = nn.functional.linear(hidden, self.weight)
        best, ids = logits.topk(2)
        return Answer(logits, best.softmax(-1), ids)


class GraniteMoeTopKRouter(Gate):
    def forward(self, hidden: torch.Tensor) -> Any:
        answer = self.chosen(hidden)
        return answer.ids, answer.weights, answer.logits


class LongcatFlashTopkRouter(Gate):
    def forward(self, hidden: torch.Tensor) -> Any:
        answer = self.chosen(hidden)
        return answer.weights, answer.ids


class Block(nn.Module):
    def __init__(self, router: nn.Module) -> None:
        super().__init__()
        self.router = router


class RecordsItsBlock(nn.Module):
    """As llama4 of transformers 5.17: what is recorded holds experts, and the router inside."""

    _can_record_outputs = {"router_logits": Block}  # noqa: RUF012

    def __init__(self, router: nn.Module) -> None:
        super().__init__()
        self.block = Block(router)
        self.block.experts = nn.Linear(4, 8)


@pytest.mark.parametrize("kind", [GraniteMoeTopKRouter, LongcatFlashTopkRouter])
@pytest.mark.parametrize("around", [Block, RecordsItsBlock])
def test_older_answers_are_read_and_formed(kind: type[Gate], around: type[nn.Module]) -> None:
    (site,) = discovery.find_routers(around(kind()))
    assert site.path.endswith("router")
    hidden = torch.randn(5, 4)
    expected, output = site.module.chosen(hidden), site.module(hidden)
    weights, ids = site.route_of(output)
    assert torch.equal(weights, expected.weights)
    assert torch.equal(ids, expected.ids)
    formed = site.contract.form(site.module, expected)
    assert len(formed) == len(output)
    assert all(torch.equal(one, other) for one, other in zip(formed, output, strict=True))


class RecordsALinear(nn.Module):
    """As jamba of transformers 5.17: the block chooses from a plain Linear's logits."""

    class Recorder:
        target_class, layer_name, index = nn.Linear, "router", 0

    _can_record_outputs = {"router_logits": Recorder}  # noqa: RUF012


def test_a_recorded_linear_is_refused_by_name() -> None:
    with pytest.raises(ModelError, match=r"RecordsALinear: .*plain Linear.*update transformers"):
        discovery.find_routers(RecordsALinear())
