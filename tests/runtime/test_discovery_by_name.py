"""Routers of families whose classes record nothing, as in older transformers, are found by their names."""

from __future__ import annotations

from pathlib import Path

import pytest

from spectral_runtime.attaching import discovery
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
