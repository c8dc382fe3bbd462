"""Attached routers in a running transformers model: identity, modes, generation, undoing, refusals."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from spectral_convert.convert import Conversion
from spectral_runtime import attach, load_bundle, load_model, reference
from spectral_runtime.attaching import selection
from spectral_runtime.attaching.attachment import plan_layers
from spectral_runtime.bundle import Bundle
from spectral_runtime.errors import BundleError, ConfigError, ModelError
from spectral_runtime.gate import GateRule, select_experts
from spectral_runtime.geometry import widened


@pytest.fixture
def tokens() -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(2, 8192, (2, 40), generator=generator)


def logits(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return model(input_ids=tokens).logits


@pytest.mark.parametrize(("mode", "candidates"), [("dense", None), ("exact", None), ("prefilter", 32)])
def test_identity(
    demo: Conversion, model: Any, tokens: torch.Tensor, mode: Any, candidates: int | None
) -> None:
    before = logits(model, tokens)
    with attach(model, demo.bundle, mode, candidates=candidates):
        assert torch.equal(logits(model, tokens), before)
    assert torch.equal(logits(model, tokens), before)


@pytest.mark.parametrize("mode", ["prefilter", "geometric"])
def test_converted_modes_differ_and_come_off_again(
    demo: Conversion, model: Any, tokens: torch.Tensor, mode: Any
) -> None:
    before = logits(model, tokens)
    with attach(model, demo.bundle, mode, candidates=6 if mode == "prefilter" else None):
        during = logits(model, tokens)
    assert torch.isfinite(during).all()
    assert not torch.equal(during, before)
    assert torch.equal(logits(model, tokens), before)
    assert not any("Spectral" in type(module).__name__ for module in model.modules())


def test_prefilter_is_the_reference(demo: Conversion, model32: Any, rng: np.random.Generator) -> None:
    """Torch in the model and numpy by the book choose the same experts with the same weights."""
    for layer, tensors in zip(
        plan_layers(model32, demo.bundle, candidates=7), demo.bundle.layers, strict=True
    ):
        hidden = rng.standard_normal((64, tensors.entry.hidden)).astype(np.float32)
        with torch.inference_mode():
            _, ids, weights = layer.route(torch.from_numpy(hidden))
        geometry, rule = tensors.geometry, tensors.entry.rule
        assert geometry is not None
        kept, _ = reference.candidates(widened(geometry), rule, hidden, 7)
        mask = np.zeros((64, rule.experts), bool)
        np.put_along_axis(mask, kept.astype(np.int64), True, axis=1)
        exact = hidden @ layer.site.weight.detach().float().numpy().T
        expected = reference.scores(geometry, hidden) + geometry.spread**2 / 2
        chosen, shares = select_experts(rule, np.where(mask, exact, expected).astype(np.float32), None, mask)
        assert (np.sort(chosen, axis=1) == np.sort(ids.numpy(), axis=1)).mean() > 0.999
        np.testing.assert_allclose(np.sort(shares, axis=1), np.sort(weights.numpy(), axis=1), atol=1e-4)


def test_router_logits_are_complete(demo: Conversion, model32: Any, tokens: torch.Tensor) -> None:
    with attach(model32, demo.bundle), torch.inference_mode():
        recorded = model32(input_ids=tokens, output_router_logits=True).router_logits
    assert len(recorded) == 4
    assert all(layer.shape == (80, 32) and torch.isfinite(layer).all() for layer in recorded)


def test_generates_with_padding_and_batches(demo: Conversion) -> None:
    model, tokenizer = load_model(demo.bundle, dtype="float32")
    tokenizer.padding_side = "left"
    batch = tokenizer(
        ["The old house", "It was"], return_tensors="pt", padding=True, return_token_type_ids=False
    )
    together = model.generate(**batch, max_new_tokens=8, do_sample=False)
    alone = model.generate(
        **tokenizer("The old house", return_tensors="pt", return_token_type_ids=False),
        max_new_tokens=8,
        do_sample=False,
    )
    assert together.shape[0] == 2
    assert tokenizer.decode(together[0, -8:]) == tokenizer.decode(alone[0, -8:])
    model.spectral_attachment.detach()
    assert not any("Spectral" in type(module).__name__ for module in model.modules())


def test_state_dict_keys_do_not_change(demo: Conversion, model32: Any) -> None:
    before = list(model32.state_dict())
    with attach(model32, demo.bundle):
        assert list(model32.state_dict()) == before


def test_the_written_bundle_is_the_one_in_memory(
    demo: Conversion, model32: Any, tokens: torch.Tensor
) -> None:
    with attach(model32, demo.bundle):
        in_memory = logits(model32, tokens)
    with attach(model32, load_bundle(demo.bundle.path)):
        assert torch.equal(logits(model32, tokens), in_memory)


def test_other_router_weights_are_refused(demo: Conversion, model32: Any) -> None:
    with torch.no_grad():
        model32.model.layers[2].mlp.gate.weight[0, 0] += 1e-3
    with pytest.raises(
        BundleError, match=r"expected router model\.layers\.2\.mlp\.gate with digest .* load the base"
    ):
        attach(model32, demo.bundle)


def test_attaching_twice_is_refused(demo: Conversion, model32: Any) -> None:
    with attach(model32, demo.bundle), pytest.raises(ModelError, match="found attached ones — detach first"):
        attach(model32, demo.bundle)


def test_a_bypassed_router_is_noticed_and_undone(
    demo: Conversion, model32: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    block = type(model32.model.layers[1].mlp)
    monkeypatch.setattr(block, "forward", lambda self, hidden: hidden)
    with pytest.raises(ModelError, match=r"4 never entered, first model\.layers\.0\.mlp\.gate.*dequantize"):
        attach(model32, demo.bundle)
    assert not any("Spectral" in type(module).__name__ for module in model32.modules())


def test_candidates_out_of_range_are_refused(demo: Conversion, model32: Any) -> None:
    with pytest.raises(ConfigError, match=r"attach\.candidates.*expected 4 \(K\) to 32 \(E\), found 3"):
        attach(model32, demo.bundle, "prefilter", candidates=3)


def test_a_dense_layer_has_no_geometry_to_route_by(demo: Conversion, model32: Any) -> None:
    layers = tuple(
        dataclasses.replace(
            layer, geometry=None, bvh=None, entry=dataclasses.replace(layer.entry, mode="prefilter")
        )
        for layer in demo.bundle.layers
    )
    bundle = Bundle(path=demo.bundle.path, manifest=demo.bundle.manifest, layers=layers)
    with pytest.raises(ConfigError, match="expected a layer with geometry, found geometric — convert again"):
        attach(model32, bundle, "geometric")


def test_groups_without_candidates_tie_by_number(rng: np.random.Generator) -> None:
    """Few candidates leave groups at -inf: torch and numpy must still choose the same, the smaller number first."""
    rule = GateRule(experts=16, top_k=4, score="sigmoid", choice_bias=True, groups=4, groups_kept=2)
    logits = rng.standard_normal((300, 16)).astype(np.float32)
    bias = rng.random(16).astype(np.float32)
    mask = np.zeros((300, 16), bool)
    np.put_along_axis(mask, rng.random((300, 16)).argsort(axis=1)[:, :4], True, axis=1)
    ids, _ = select_experts(rule, logits, bias, mask)
    found, _ = selection.select_experts(rule, *map(torch.from_numpy, (logits, bias, mask)))
    np.testing.assert_array_equal(found.numpy(), ids)
