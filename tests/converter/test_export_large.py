"""Routers of thousands of experts: their tensors leave the graph, and ONNX Runtime loads them from beside it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="the extra onnx is not installed")
ort = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")

from pico_bundles import make_geometry, make_layer  # noqa: E402

from spectral_convert.export import files  # noqa: E402
from spectral_convert.export.graphs import routers_model  # noqa: E402
from spectral_convert.export.routes import Route, make_route  # noqa: E402
from spectral_runtime.gate import GateRule  # noqa: E402
from spectral_runtime.reference import scores  # noqa: E402

HIDDEN, TOKENS = 272, 5


def large_route(rng: np.random.Generator, experts: int, mode: Any) -> tuple[Route, Any]:
    layer = make_layer(rng, hidden=HIDDEN, levels=4, colour=0)
    rule = GateRule(experts=experts, top_k=8, score="logits", weight="softmax")
    geometry = make_geometry(rng, experts, HIDDEN, 4, 0)
    entry = dataclasses.replace(layer.entry, rule=rule, levels=4, colour=0)
    large = dataclasses.replace(layer, entry=entry, geometry=geometry, bvh=None)
    gate = rng.standard_normal((experts, HIDDEN), dtype=np.float32)
    return make_route(large, mode=mode, candidates=64, gate=(gate, None), choice_bias=None), geometry


@pytest.mark.parametrize("experts", [4096, 65_536])
def test_exported_and_loaded(rng: np.random.Generator, tmp_path: Path, experts: int) -> None:
    route, geometry = large_route(rng, experts, "prefilter")
    path = tmp_path / "routers.onnx"
    files.save_model(routers_model([route]), path)
    beside = tmp_path / "routers.onnx.data"
    assert beside.exists() == (experts == 65_536)
    if beside.exists():
        assert path.stat().st_size < 1_000_000
        assert beside.stat().st_size > experts * HIDDEN * 4
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    hidden = (geometry.mean + 0.1 * rng.standard_normal((TOKENS, HIDDEN))).astype(np.float32)
    ids, _ = session.run(None, {"hidden": hidden})
    best = np.argsort(-(scores(geometry, hidden) + geometry.spread), axis=1)[:, :64]
    exact = np.take_along_axis(hidden @ route.arrays["gate_weight"].T, best, axis=1)
    wanted = np.take_along_axis(best, np.argsort(-exact, axis=1)[:, :8], axis=1)
    np.testing.assert_array_equal(ids, wanted)


def test_a_model_that_no_checker_accepts_is_our_bug(rng: np.random.Generator, tmp_path: Path) -> None:
    model = routers_model([large_route(rng, 64, "geometric")[0]])
    model.graph.node[0].input[1] = "nowhere"
    with pytest.raises(files.InternalError, match=r"routers.onnx: expected a valid ONNX model, found"):
        files.save_model(model, tmp_path / "routers.onnx")
