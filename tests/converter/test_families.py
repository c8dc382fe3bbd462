"""Every family: its rule is found, its routers replaced without a trace; it converts, generates, evaluates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pico_models import FAMILIES, pico_model, write_checkpoint, write_text

from spectral_convert.convert import convert_checkpoint
from spectral_convert.evaluate import evaluate_bundle
from spectral_convert.families import classify_routers
from spectral_convert.generate import continue_prompt
from spectral_runtime.attaching import attach, find_routers
from spectral_runtime.attaching.attachment import Attachment
from spectral_runtime.attaching.layer import AttachedLayer
from spectral_runtime.attaching.load import load_base

SIGMOID = {"score": "sigmoid", "normalise": True}
GROUPS = {
    **SIGMOID,
    "choice_bias": True,
    "groups": 4,
    "groups_kept": 2,
    "linear": "float32",
    "returns": "float32",
}
TOP_FIRST = {"score": "logits", "weight": "softmax"}
RULES: dict[str, dict[str, Any]] = {
    "olmoe": {"score": "softmax", "normalise": False, "returns": "model"},
    "flex_olmo": {"score": "softmax", "normalise": False},
    "mixtral": {"score": "softmax", "normalise": True, "returns": "float32"},
    "qwen2_moe": {"score": "softmax", "normalise": False},
    "qwen3_moe": {"score": "softmax", "normalise": True, "returns": "model"},
    "qwen3_next": {"score": "softmax", "normalise": True},
    "qwen3_5_moe_text": {"score": "softmax", "normalise": True},
    "deepseek_v2": {
        "score": "softmax",
        "groups": 4,
        "group_score": "max",
        "linear": "float32",
        "normalise": False,
    },
    "deepseek_v3": {**GROUPS, "scale": 2.5},
    "gpt_oss": TOP_FIRST,
    "glm4_moe": GROUPS,
    "granitemoe": TOP_FIRST,
    "phimoe": {"weight": "sparsemixer", "threshold": 0.02},
    "ernie4_5_moe": {"score": "softmax", "choice_bias": True, "normalise_min": 1e-12, "linear": "float32"},
    "hunyuan_v1_moe": {"score": "softmax", "normalise": True},
    "minimax": {"score": "softmax", "normalise": True, "returns": "float32"},
    "minimax_m2": {**SIGMOID, "choice_bias": True, "returns": "float32"},
    "dots1": {**GROUPS, "scale": 1.5},
    "lfm2_moe": {**SIGMOID, "choice_bias": True, "normalise_eps": 1e-6, "scores": "model"},
    "longcat_flash": {
        "score": "softmax",
        "choice_bias": True,
        "scale": 6.0,
        "normalise": False,
        "experts": 10,
    },
    "afmoe": {**SIGMOID, "choice_bias": True, "returns": "float32"},
    "jamba": {"score": "softmax", "normalise": False},
    "nemotron_h": GROUPS,
    "kimi_linear": {**GROUPS, "scale": 2.446},
    "gemma4_text": {"score": "softmax", "normalise": True, "expert_scale": True, "returns": "float32"},
    "llama4_text": {"score": "sigmoid", "normalise": False, "top_k": 1},
    "cohere2_moe": TOP_FIRST,
    "exaone_moe": {**GROUPS, "scale": 2.5},
    "mellum": {"score": "softmax", "normalise": True},
    "jetmoe": TOP_FIRST,
    "dbrx": {"score": "softmax", "normalise": True, "scores": "model"},
}
"""What the research table says of each family, where it differs from another."""
FEW = {"tokens": 500, "sequence_length": 32, "levels": 2, "alpha": 0.2}


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text") / "pico.txt")


def test_every_family_has_a_rule_to_meet() -> None:
    assert RULES.keys() == FAMILIES.keys()


@pytest.mark.parametrize("family", FAMILIES)
def test_rule_is_found_and_reproduces_the_model(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = pico_model(family)
    sites = find_routers(model)
    rules = classify_routers(sites)
    assert {key: getattr(rules[0], key) for key in RULES[family]} == RULES[family]
    ids = torch.arange(40).reshape(2, 20) * 3
    with torch.no_grad():
        before = model(input_ids=ids).logits
        _route_all_by_rule(model, sites, rules, monkeypatch)
        after = model(input_ids=ids).logits
    assert before.abs().max() > 1e-3
    torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-5)


def _route_all_by_rule(model: Any, sites: Any, rules: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Puts our arithmetic in place of the family's on the gate's own logits: nothing may change."""

    class Exact:
        def __init__(self, site: Any) -> None:
            self.site = site

        def scores(self, hidden: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.linear(hidden, self.site.weight, self.site.bias)

        def to(self, _: Any) -> Any:
            return self

    monkeypatch.setattr(AttachedLayer, "passes_through", False)
    pairs = zip(sites, rules, strict=True)
    layers = tuple(AttachedLayer(s, r, "geometric", r.experts, Exact(s)) for s, r in pairs)  # type: ignore[arg-type]
    Attachment(model, layers).swap()


@pytest.mark.parametrize("family", FAMILIES)
def test_family_end_to_end(family: str, tmp_path: Path, text: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "model", family)
    done = convert_checkpoint(str(checkpoint), out=tmp_path / "bundle", calibration=str(text), **FEW)
    assert all(layer.entry.certificate is not None for layer in done.bundle.layers)
    assert done.evaluation.perplexity.tokens > 0
    model, tokenizer = load_base(checkpoint, dtype="float32")
    ids = torch.tensor([tokenizer("bami treku sa")["input_ids"]])
    experts = max(layer.entry.rule.experts for layer in done.bundle.layers)
    with torch.no_grad():
        plain = model(input_ids=ids).logits
        for options in ({"mode": "dense"}, {"mode": "prefilter", "candidates": experts}):
            with attach(model, done.bundle, **options):
                assert torch.equal(model(input_ids=ids).logits, plain), options
    assert torch.equal(model(input_ids=ids).logits, plain)
    made = continue_prompt(model, tokenizer, done.bundle, "lo miba", mode=_geometric(done), max_new_tokens=4)
    assert made.same_tokens <= 4
    record = evaluate_bundle(
        done.bundle.path, text=text, max_tokens=200, sequence_length=32, mode=_geometric(done)
    )
    assert 0.0 < record["recall"] <= 1.0
    assert record["ppl"] > 1.0


def _geometric(done: Any) -> Any:
    """A whole-model override is possible only where every layer kept its geometry."""
    return "geometric" if all(layer.geometry is not None for layer in done.bundle.layers) else None
