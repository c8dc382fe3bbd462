"""The custom operator of ONNX Runtime: the ids of the model's own function, under every rule and in every mode."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx", reason="the extra onnx is not installed")
ort = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")

from onnx import TensorProto, helper  # noqa: E402
from pico_bundles import SIGMOID_GROUPS, make_layer  # noqa: E402

from spectral_convert.export.graphs import routers_model  # noqa: E402
from spectral_convert.export.routes import Route, make_route  # noqa: E402
from spectral_runtime import onnxruntime as ours  # noqa: E402
from spectral_runtime.errors import BackendUnavailable  # noqa: E402


def _library() -> Path | None:
    try:
        return ours.library_path()
    except BackendUnavailable:
        return None


pytestmark = pytest.mark.skipif(_library() is None, reason="libspectral_ort.so is not built")

RULES: dict[str, dict[str, Any]] = {
    "softmax": {},
    "normalised": {"normalise": True, "normalise_eps": 1e-6, "normalise_min": 1e-6},
    "softmax_of_chosen": {"score": "logits", "weight": "softmax"},
    "sigmoid_of_chosen": {"score": "logits", "weight": "sigmoid", "scale": 1.5},
    "sigmoid_groups": SIGMOID_GROUPS,
    "groups_by_maximum": {**SIGMOID_GROUPS, "group_score": "max", "group_fill": "zero"},
    "softplus": {"score": "sqrtsoftplus", "choice_bias": True, "normalise": True},
    "bent": {"logit_scale": 0.5, "softcap": 30.0, "score": "sigmoid"},
    "sparsemixer": {"score": "logits", "weight": "sparsemixer", "threshold": 0.02},
}
MODES = ("dense", "prefilter", "geometric")


def route_of(rng: np.random.Generator, mode: Any, rule: dict[str, Any], **sizes: Any) -> Route:
    """A layer whose scores stay moderate, so that no two choices are equal by saturation."""
    layer = make_layer(rng, rule=rule, gate_rows=True, **sizes)
    gate = layer.gate_weight / np.float32(layer.entry.hidden), layer.gate_bias
    count = layer.entry.candidates
    route = make_route(layer, mode=mode, candidates=count, gate=gate, choice_bias=layer.choice_bias)
    if route.uses_geometry:
        route.arrays["projection"] = route.arrays["projection"] / np.float32(4 * layer.entry.hidden)
    return route


def sessions(model: Any) -> tuple[Any, Any]:
    """The model by its own function, and by our operator."""
    data = model.SerializeToString()
    plain = ort.InferenceSession(data, providers=["CPUExecutionProvider"])
    options = ours.register(ort.SessionOptions())
    return plain, ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def near_the_mean(rng: np.random.Generator, route: Route, tokens: int) -> np.ndarray:
    mean = route.arrays["mean"]
    return (mean + 0.25 * rng.standard_normal((tokens, route.hidden))).astype(np.float32)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES.keys())
def test_same_ids_as_the_function(rng: np.random.Generator, rule: dict[str, Any], mode: Any) -> None:
    route = route_of(rng, mode, rule, experts=48, hidden=40, top_k=4, candidates=12)
    plain, native = sessions(routers_model([route]))
    assert [x.shape for x in native.run(None, {"hidden": near_the_mean(rng, route, 0)})] == [(0, 4), (0, 4)]
    for tokens in (1, 15, 16, 17, 200):
        feeds = {"hidden": near_the_mean(rng, route, tokens)}
        wanted, found = plain.run(None, feeds), native.run(None, feeds)
        np.testing.assert_array_equal(found[0], wanted[0])
        np.testing.assert_allclose(found[1], wanted[1], atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("experts", [3, 17, 300])
@pytest.mark.parametrize("hidden", [1, 16, 33])
def test_sizes_off_the_blocks(rng: np.random.Generator, experts: int, hidden: int) -> None:
    route = route_of(rng, "prefilter", {}, experts=experts, hidden=hidden, top_k=2, candidates=2)
    plain, native = sessions(routers_model([route]))
    feeds = {"hidden": near_the_mean(rng, route, 21)}
    np.testing.assert_array_equal(native.run(None, feeds)[0], plain.run(None, feeds)[0])


@pytest.mark.parametrize("count", [2, 13, 40, 299, 300])
def test_candidates_few_and_many(rng: np.random.Generator, count: int) -> None:
    route = route_of(rng, "prefilter", {}, experts=300, hidden=24, top_k=2, candidates=count)
    plain, native = sessions(routers_model([route]))
    feeds = {"hidden": near_the_mean(rng, route, 33)}
    np.testing.assert_array_equal(native.run(None, feeds)[0], plain.run(None, feeds)[0])


def test_equal_scores_go_to_the_smaller_id(rng: np.random.Generator) -> None:
    route = route_of(rng, "dense", {}, experts=20, hidden=8, top_k=5)
    for name in ("gate_weight", "gate_bias"):
        route.arrays[name][:] = route.arrays[name][0]
    _, native = sessions(routers_model([route]))
    ids = native.run(None, {"hidden": near_the_mean(rng, route, 3)})[0]
    np.testing.assert_array_equal(ids, np.tile(np.arange(5), (3, 1)))


def test_nan_is_no_crash(rng: np.random.Generator) -> None:
    for mode in MODES:
        route = route_of(rng, mode, {}, experts=20, hidden=8, top_k=5)
        _, native = sessions(routers_model([route]))
        hidden = near_the_mean(rng, route, 3)
        hidden[1] = np.nan
        ids, weights = native.run(None, {"hidden": hidden})
        assert ((ids >= 0) & (ids < 20)).all()
        assert np.isnan(weights[1]).all()
        assert np.isfinite(weights[[0, 2]]).all()


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_half_precision(rng: np.random.Generator, kind: str) -> None:
    import ml_dtypes

    dtype = np.float16 if kind == "float16" else ml_dtypes.bfloat16
    route = route_of(rng, "dense", {}, experts=24, hidden=32, top_k=3)
    for name in ("gate_weight", "gate_bias"):
        route.arrays[name] = route.arrays[name].astype(dtype)
    model = routers_model([route], kind)
    states = near_the_mean(rng, route, 50).astype(dtype)
    # numpy has no bfloat16 of its own: the graph is fed float32 and rounds.
    graph = model.graph
    graph.input[0].CopyFrom(helper.make_tensor_value_info("wide", TensorProto.FLOAT, ["tokens", 32]))
    half = TensorProto.FLOAT16 if kind == "float16" else TensorProto.BFLOAT16
    graph.node.insert(0, helper.make_node("Cast", ["wide"], ["hidden"], to=half))
    graph.node.append(helper.make_node("Cast", ["weights"], ["shares"], to=TensorProto.FLOAT))
    graph.output[1].CopyFrom(helper.make_tensor_value_info("shares", TensorProto.FLOAT, ["tokens", 3]))
    native = ort.InferenceSession(model.SerializeToString(), ours.register(ort.SessionOptions()))
    ids, weights = native.run(None, {"wide": states.astype(np.float32)})
    logits = states.astype(np.float32) @ route.arrays["gate_weight"].astype(np.float32).T
    logits += route.arrays["gate_bias"].astype(np.float32)
    np.testing.assert_array_equal(ids, np.argsort(-logits, axis=1, kind="stable")[:, :3])
    shares = np.exp(logits - logits.max(1, keepdims=True))
    shares = np.take_along_axis(shares / shares.sum(1, keepdims=True), ids.astype(np.int64), 1)
    np.testing.assert_allclose(
        weights, shares.astype(dtype).astype(np.float32), rtol=2e-2 if kind == "bfloat16" else 2e-3
    )


def test_a_node_of_a_newer_format_is_refused(rng: np.random.Generator) -> None:
    model = routers_model([route_of(rng, "dense", {})])
    next(a for a in model.graph.node[0].attribute if a.name == "format").i = 2
    with pytest.raises(Exception, match=r"BvhRoute.format: expected 1, what this library reads, found 2"):
        ort.InferenceSession(model.SerializeToString(), ours.register(ort.SessionOptions()))


def test_arrays_of_another_size_are_refused(rng: np.random.Generator) -> None:
    model = routers_model([route_of(rng, "dense", {})])
    next(a for a in model.graph.node[0].attribute if a.name == "experts").i = 9
    native = ort.InferenceSession(model.SerializeToString(), ours.register(ort.SessionOptions()))
    with pytest.raises(Exception, match=r"BvhRoute input 6: expected 108 numbers, found 96"):
        native.run(None, {"hidden": np.zeros((1, 12), np.float32)})


def test_old_runtimes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort, "__version__", "1.16.3")
    with pytest.raises(
        BackendUnavailable, match=r"onnxruntime: expected 1.17 or newer, found 1.16.3 — upgrade"
    ):
        ours.register(ort.SessionOptions())


def test_without_the_library_the_reason_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ours, "LIBRARY", "libnothing.so")
    with pytest.raises(BackendUnavailable, match=r"expected libnothing.so, found no such library"):
        ours.register(ort.SessionOptions())


def test_links_nothing_of_onnx_runtime() -> None:
    readelf = shutil.which("readelf")
    if readelf is None:
        pytest.skip("readelf is not installed")
    out = subprocess.run([readelf, "-d", str(_library())], capture_output=True, text=True, check=True).stdout
    needed = re.findall(r"\(NEEDED\).*\[(.*)\]", out)
    assert needed
    assert not [name for name in needed if re.search(r"cuda|onnxruntime|nvinfer|python", name)]
