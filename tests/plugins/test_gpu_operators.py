"""The fused torch operators choose and weigh as the torch gate does, eagerly, compiled and in CUDA graphs."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from gpu_worlds import make_geometry, require

from spectral_runtime.attaching import operators
from spectral_runtime.attaching.scorer import Scorer
from spectral_runtime.attaching.selection import gate_logits, select_experts
from spectral_runtime.gate import GateRule

pytestmark = pytest.mark.gpu

RULES = {
    "olmoe": GateRule(experts=64, top_k=8),
    "qwen": GateRule(experts=128, top_k=8, normalise=True),
    "mixtral": GateRule(experts=8, top_k=2, normalise=True),
    "gpt-oss": GateRule(experts=32, top_k=4, score="logits", weight="softmax"),
    "deepseek": GateRule(
        experts=256, top_k=8, score="sigmoid", choice_bias=True, groups=8, groups_kept=4, normalise=True,
        normalise_eps=1e-20, scale=2.5, linear="float32", returns="float32",
    ),
    "kimi": GateRule(experts=384, top_k=8, score="sigmoid", choice_bias=True, normalise=True, scale=2.827),
    "wide": GateRule(experts=1000, top_k=31, score="sqrtsoftplus", normalise=True),
    "one": GateRule(experts=1, top_k=1),
}  # fmt: skip


@pytest.fixture(autouse=True)
def _needs_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    require("cuda")
    monkeypatch.setenv("SPECTRAL_FUSED", "1")


def world(rule: GateRule, tokens: int, kind: torch.dtype, hidden: int = 512):
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(tokens, hidden, generator=generator).to("cuda", kind)
    weight = (torch.randn(rule.experts, hidden, generator=generator) / hidden**0.5).to("cuda", kind)
    bias = torch.randn(rule.experts, generator=generator).mul(0.1).to("cuda") if rule.choice_bias else None
    return x, weight, bias


def agree(rule, x, weight, choice_bias, answer):
    """Chosen scores and weights equal those of float64 logits within rounding; ids may swap within it."""
    logits, ids, weights = answer
    exact = x.double() @ weight.double().T
    tolerance = 0.03 if rule.linear == "model" and x.dtype != torch.float32 else 1e-4
    assert (logits.double() - exact).abs().max() < tolerance
    truth_ids, truth = select_experts(rule, logits.float(), choice_bias)
    same = (ids.sort(dim=1)[0] == truth_ids.sort(dim=1)[0]).all(dim=1)
    assert same.float().mean() > 0.97  # the rest are ties of rounded logits, chosen by id here
    order, truth_order = ids.argsort(dim=1), truth_ids.argsort(dim=1)
    close = (weights.gather(1, order).float() - truth.gather(1, truth_order).float()).abs().amax(dim=1)
    assert close[same].max() < (2e-3 if weights.dtype != torch.float32 else 1e-5)
    assert (ids.sort(dim=1)[0].diff(dim=1) > 0).all() or rule.top_k == 1


@pytest.mark.parametrize("tokens", [1, 3, 8, 9, 64, 65, 1024, 4097])
@pytest.mark.parametrize("family", RULES)
@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16, torch.float32])
def test_the_fused_gate_is_the_gate(family, tokens, kind):
    rule = RULES[family]
    x, weight, bias = world(rule, tokens, kind)
    number = operators.keep(operators.FusedGate(rule, bias, None))
    agree(rule, x, weight, bias, operators.fused_gate(x, weight, number))


@pytest.mark.parametrize("tokens", [3, 300])
@pytest.mark.parametrize("experts", [64, 128, 256, 512, 1000])
@pytest.mark.parametrize("first", [0, 20, 60])
def test_the_best_may_all_be_neighbours(experts, tokens, first):
    """A lane holds neighbours, and those 128 further: here it holds all that are chosen, or equals beyond them."""
    rule = GateRule(experts=experts, top_k=8)
    places = [first + start + i for start in range(0, experts, 128) for i in range(4)]
    places = [place for place in places if place < experts]
    x = torch.rand(tokens, experts, generator=torch.Generator().manual_seed(3)).to("cuda", torch.bfloat16)
    x[:, places] = torch.arange(len(places), 0, -1, device="cuda").bfloat16() + 2
    x[1, places] = 5.0
    number = operators.keep(operators.FusedGate(rule, None, None))
    logits, ids, _ = operators.fused_gate(x, torch.eye(experts, device="cuda").bfloat16(), number)
    assert torch.equal(logits, x)
    assert torch.equal(ids, x.sort(dim=1, descending=True, stable=True)[1][:, :8])


def test_the_same_input_gives_the_same_bits():
    rule = RULES["qwen"]
    x, weight, bias = world(rule, 777, torch.bfloat16)
    number = operators.keep(operators.FusedGate(rule, bias, None))
    first, again = (operators.fused_gate(x, weight, number) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_empty_batches_strided_rows_and_nan():
    rule = RULES["olmoe"]
    x, weight, _ = world(rule, 6, torch.bfloat16)
    number = operators.keep(operators.FusedGate(rule, None, None))
    assert operators.fused_gate(x[:0], weight, number)[1].shape == (0, 8)
    wide = torch.randn(6, 700, device="cuda").bfloat16()
    assert torch.equal(
        operators.fused_gate(wide[:, 3:515], weight, number)[1],
        operators.fused_gate(wide[:, 3:515].contiguous(), weight, number)[1],
    )
    x[3, 9] = float("nan")
    ids = operators.fused_gate(x, weight, number)[1]
    assert torch.equal(ids[3], torch.arange(8, device="cuda"))


@pytest.mark.parametrize("common", [False, True])
@pytest.mark.parametrize("mode", ["geometric", "prefilter"])
@pytest.mark.parametrize("family", ["olmoe", "qwen", "deepseek"])
@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float32])
def test_the_fused_geometry_is_the_scorer_and_the_rule(family, mode, kind, common):
    rule = dataclasses.replace(RULES[family], linear="float32", returns="float32")
    x, weight, bias = world(rule, 200, kind)
    geometry = make_geometry(
        np.random.default_rng(3), rule.experts, hidden=512, levels=2, colours=6, common=common
    )
    candidates = 24 if mode == "prefilter" else 0
    host = None if bias is None else bias.cpu().numpy()
    value = operators.FusedGeometry(rule, geometry, host, candidates, weight=weight, bias=None)
    _, ids, weights = operators.fused_geometry(x, weight, operators.keep(value))
    logits, mask = Scorer.of(geometry, "cuda").scores(x), None
    if candidates:
        spread = torch.tensor(geometry.spread, device="cuda")
        widened = logits + spread if rule.score == "softmax" else (logits + spread).sigmoid() + bias
        chosen = widened.topk(candidates, dim=1)[1]
        mask = torch.zeros_like(logits, dtype=torch.bool).scatter_(1, chosen, True)
        exact = gate_logits(rule, x, weight, None)
        logits = torch.where(mask, exact, logits + spread.square() / 2)
    truth_ids, truth = select_experts(rule, logits, bias, mask)
    same = (ids.sort(dim=1)[0] == truth_ids.sort(dim=1)[0]).all(dim=1)
    assert same.float().mean() > 0.97
    order, truth_order = ids.argsort(dim=1), truth_ids.argsort(dim=1)
    close = (weights.gather(1, order) - truth.gather(1, truth_order)).abs().amax(dim=1)[same]
    assert close.max() < 2e-3


@pytest.mark.parametrize("family", ["olmoe", "deepseek"])
@pytest.mark.parametrize("tokens", [1, 8, 33])
def test_a_geometry_without_a_common_mode_adds_nothing_that_an_earlier_kernel_left(family, tokens):
    rule = dataclasses.replace(RULES[family], linear="float32", returns="float32")
    x, weight, bias = world(rule, tokens, torch.bfloat16)
    host = None if bias is None else bias.cpu().numpy()
    kept = []
    for common in (True, False):
        geometry = make_geometry(np.random.default_rng(3), rule.experts, hidden=512, levels=2, common=common)
        value = operators.FusedGeometry(rule, geometry, host, 0, weight=weight, bias=None)
        kept.append(operators.keep(value))
    # Leaves NaN where the common mode of a centred geometry lies, on every multiprocessor.
    operators.fused_geometry(torch.full((100_000, 512), torch.nan, device="cuda").bfloat16(), weight, kept[0])
    _, ids, weights = operators.fused_geometry(x, weight, kept[1])
    truth_ids, truth = select_experts(rule, Scorer.of(geometry, "cuda").scores(x), bias, None)
    assert (ids.sort(dim=1)[0] == truth_ids.sort(dim=1)[0]).all(dim=1).float().mean() > 0.9
    torch.testing.assert_close(weights.sort(dim=1)[0], truth.sort(dim=1)[0], rtol=0, atol=2e-3)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_compiled_and_captured_calls_give_the_eager_answer():
    rule = RULES["olmoe"]
    x, weight, _ = world(rule, 32, torch.bfloat16)
    number = operators.keep(operators.FusedGate(rule, None, None))
    eager = operators.fused_gate(x, weight, number)
    compiled = torch.compile(lambda a: operators.fused_gate(a, weight, number), fullgraph=True)
    assert all(torch.equal(a, b) for a, b in zip(eager, compiled(x), strict=True))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = operators.fused_gate(x, weight, number)
    for tensor in captured:
        tensor.zero_()
    graph.replay()
    torch.cuda.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(eager, captured, strict=True))
