"""The ONNX meaning of a routing step is the runtime's arithmetic, in every mode and under every rule."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="the extra onnx is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")

from onnx.reference import ReferenceEvaluator  # noqa: E402
from pico_bundles import SIGMOID_GROUPS, make_bundle, make_layer  # noqa: E402

from spectral_convert.export.graphs import routers_model  # noqa: E402
from spectral_convert.export.routes import INPUTS, make_route, routes_of_bundle  # noqa: E402
from spectral_runtime.bundle import Bundle  # noqa: E402
from spectral_runtime.errors import BundleError, ModelError  # noqa: E402
from spectral_runtime.gate import GateRule, expert_scores, select_experts, top_ids  # noqa: E402
from spectral_runtime.reference import scores as geometric_scores  # noqa: E402

RULES: dict[str, dict[str, Any]] = {
    "softmax": {},
    "softmax_normalised": {"normalise": True, "normalise_eps": 1e-6},
    "softmax_of_chosen": {"score": "logits", "weight": "softmax"},
    "sigmoid_of_chosen": {"score": "logits", "weight": "sigmoid", "scale": 1.5},
    "sigmoid_groups": SIGMOID_GROUPS,
    "groups_by_maximum": {**SIGMOID_GROUPS, "group_score": "max", "group_fill": "zero"},
    "softplus": {"score": "sqrtsoftplus", "choice_bias": True, "normalise": True, "normalise_min": 1e-3},
    "bent": {"logit_scale": 0.5, "softcap": 30.0, "score": "sigmoid"},
    "sparsemixer": {"score": "logits", "weight": "sparsemixer", "threshold": 0.02},
}
MODES = ("dense", "exact", "prefilter", "geometric")
TOKENS = 40
ATOL = 2e-5
"""ONNX Runtime approximates the logistic function to a few units of 1e-6."""


def bundle_of(rng: np.random.Generator, rule: dict[str, Any], layers: int = 2) -> Bundle:
    manifest, made = make_bundle(rng, layers=layers, rule=rule, gate_rows=True, mode="prefilter")
    return Bundle(path="pico", manifest=manifest, layers=made)  # type: ignore[arg-type]


def expected(layer: Any, mode: str, hidden: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The routing step in the problem's own words."""
    rule: GateRule = layer.entry.rule
    exact = hidden @ layer.gate_weight.T + layer.gate_bias
    if mode in ("dense", "exact"):
        return select_experts(rule, exact, layer.choice_bias)
    approximate = geometric_scores(layer.geometry, hidden)
    if mode == "geometric":
        return select_experts(rule, approximate, layer.choice_bias)
    spread = layer.geometry.spread
    choice = expert_scores(rule, approximate + spread)
    choice = choice if layer.choice_bias is None else choice + layer.choice_bias
    mask = np.zeros(choice.shape, bool)
    np.put_along_axis(mask, top_ids(choice, layer.entry.candidates).astype(np.int64), True, axis=1)
    logits = np.where(mask, exact, approximate + spread**2 / 2).astype(np.float32)
    return select_experts(rule, logits, layer.choice_bias, mask)


def feeds_of(rng: np.random.Generator, bundle: Bundle) -> dict[str, np.ndarray]:
    """Hidden states near the layers' means, so that no logistic function saturates."""
    means = [layer.geometry.mean for layer in bundle.layers]
    drawn = [mean + 0.25 * rng.standard_normal((TOKENS, len(mean))) for mean in means]
    return {f"hidden.{i}": states.astype(np.float32) for i, states in enumerate(drawn)}


def assert_routes(outputs: list[np.ndarray], bundle: Bundle, mode: str, feeds: dict[str, np.ndarray]) -> None:
    for number, layer in enumerate(bundle.layers):
        ids, weights = expected(layer, mode, feeds[f"hidden.{number}"])
        assert outputs[2 * number].dtype == np.int32
        np.testing.assert_array_equal(outputs[2 * number], ids)
        np.testing.assert_allclose(outputs[2 * number + 1], weights, atol=ATOL, rtol=0)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES.keys())
def test_function_is_the_runtimes_arithmetic(
    rng: np.random.Generator, rule: dict[str, Any], mode: Any
) -> None:
    bundle = bundle_of(rng, rule)
    model = routers_model(routes_of_bundle(bundle, mode))
    onnx.checker.check_model(model, full_check=True)
    feeds = feeds_of(rng, bundle)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    assert_routes(session.run(None, feeds), bundle, mode, feeds)
    assert_routes(ReferenceEvaluator(model).run(None, feeds), bundle, mode, feeds)


def test_layers_of_different_modes_share_one_function(rng: np.random.Generator) -> None:
    bundle = bundle_of(rng, {"normalise": True}, layers=3)
    chosen = ("dense", "prefilter", "geometric")
    routes = [routes_of_bundle(bundle, mode)[i] for i, mode in enumerate(chosen)]
    model = routers_model(routes)
    assert [f.name for f in model.functions] == ["BvhRoute"]
    assert [node.op_type for node in model.graph.node] == ["BvhRoute"] * 3
    feeds = feeds_of(rng, bundle)
    for run in (
        onnxruntime.InferenceSession(model.SerializeToString()).run,
        ReferenceEvaluator(model).run,
    ):
        outputs = run(None, feeds)
        for number, mode in enumerate(chosen):
            ids, weights = expected(bundle.layers[number], mode, feeds[f"hidden.{number}"])
            np.testing.assert_array_equal(outputs[2 * number], ids)
            np.testing.assert_allclose(outputs[2 * number + 1], weights, atol=ATOL, rtol=0)


def test_shapes_are_inferred_through_the_function(rng: np.random.Generator) -> None:
    model = routers_model(routes_of_bundle(bundle_of(rng, {})))
    inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    shape = inferred.graph.output[0].type.tensor_type.shape
    assert [d.dim_param or d.dim_value for d in shape.dim] == ["tokens", 2]


def test_node_says_what_a_plugin_needs(rng: np.random.Generator) -> None:
    bundle = bundle_of(rng, {})
    node = routers_model(routes_of_bundle(bundle)).graph.node[0]
    named = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    assert (node.domain, named["plugin_version"], named["plugin_namespace"]) == (
        "spectral",
        b"1",
        b"spectral",
    )
    assert (named["format"], named["mode"], named["candidates"]) == (1, b"prefilter", 4)
    assert len(node.input) == len(INPUTS)


def test_inner_names_carry_the_operators_name(rng: np.random.Generator) -> None:
    function = routers_model(routes_of_bundle(bundle_of(rng, SIGMOID_GROUPS))).functions[0]
    inner = {name for node in function.node for name in (*node.input, *node.output)}
    assert all(name.startswith("BvhRoute__") for name in inner)


def test_digest_follows_every_array(rng: np.random.Generator) -> None:
    route = routes_of_bundle(bundle_of(rng, SIGMOID_GROUPS))[0]
    layer = make_layer(rng, rule=SIGMOID_GROUPS, gate_rows=True)
    other = make_route(
        layer, mode="prefilter", candidates=4, gate=(layer.gate_weight, None), choice_bias=layer.choice_bias
    )
    assert len({route.digest, other.digest}) == 2


def test_without_gate_rows_the_base_model_is_asked_for(rng: np.random.Generator) -> None:
    bundle = bundle_of(rng, {})
    bare = dataclasses.replace(bundle.layers[0], gate_weight=None)
    with pytest.raises(BundleError, match=r"what prefilter needs, found no gate rows.*--base"):
        routes_of_bundle(dataclasses.replace(bundle, layers=(bare,)))
    assert routes_of_bundle(dataclasses.replace(bundle, layers=(bare,)), "geometric")


def test_rules_of_two_structures_need_a_graph_each(rng: np.random.Generator) -> None:
    one, other = (routes_of_bundle(bundle_of(rng, rule))[0] for rule in ({}, {"normalise": True}))
    with pytest.raises(ModelError, match=r"normalise False .*found True.*--per-layer"):
        routers_model([one, other])
