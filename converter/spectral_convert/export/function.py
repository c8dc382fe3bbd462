"""What `spectral::BvhRoute` means: an ONNX function of standard operators, the arithmetic of `attach`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx
from onnx import AttributeProto, FunctionProto, NodeProto, TensorProto, helper

from spectral_convert.export.routes import INPUTS, OUTPUTS, Route, require_one_structure

DOMAIN, NAME, VERSION = "spectral", "BvhRoute", 1
PREFIX = f"{NAME}__"
"""Of every inner name: TensorRT's parser keeps inner and outer tensors in one map."""


class Body:
    """The nodes of the function, named as they are added."""

    def __init__(self) -> None:
        self.nodes: list[NodeProto] = []

    def add(self, kind: str, *inputs: str, outputs: int = 1, **attributes: Any) -> Any:
        """Appends a node and returns the name of its output, or the names of several."""
        names = [f"{PREFIX}{kind}_{len(self.nodes)}_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(kind, list(inputs), names, **attributes))
        return names[0] if outputs == 1 else names

    def number(self, value: float, like: str) -> str:
        """A constant in the dtype of the tensor `like`."""
        return str(self.add("CastLike", self.add("Constant", value_float=value), like))

    def ints(self, *values: int) -> str:
        """A constant int64 vector."""
        return str(self.add("Constant", value_ints=list(values)))

    def attribute(self, name: str, kind: str = "int") -> str:
        """The node's attribute `name` as a scalar tensor, int64 or float32."""
        out = f"{PREFIX}{name}_{len(self.nodes)}"
        node = helper.make_node("Constant", [], [out])
        code = AttributeProto.INT if kind == "int" else AttributeProto.FLOAT
        node.attribute.append(AttributeProto(name=f"value_{kind}", ref_attr_name=name, type=code))
        self.nodes.append(node)
        return out

    def length(self, name: str) -> str:
        """The integer attribute `name` as an int64 vector of one."""
        return str(self.add("Reshape", self.attribute(name), self.ints(1)))

    def scaled(self, kind: str, value: str, name: str) -> str:
        """`kind(value, attribute name)`, the attribute in the dtype of the value."""
        return str(self.add(kind, value, self.add("CastLike", self.attribute(name, "float"), value)))


def route_function(routes: Sequence[Route], opset: int) -> FunctionProto:
    """The function that all these routes are calls of.

    Args:
        routes: layers of one model; their rules must have one structure.
        opset: of the standard operators, the model's own: at least 18.

    Raises:
        ModelError: the layers' rules differ in structure.
    """
    rule = require_one_structure(routes).rule
    body = Body()
    hidden = PREFIX + "hidden"
    logits, mask = _logits(body, routes)
    scores = _expert_scores(body, rule, logits)
    choice = _choice(body, rule, scores)
    if mask:
        choice = body.add("Where", mask, choice, body.number(float("-inf"), choice))
    if any(route.rule.groups > 1 for route in routes):
        choice = _limit_groups(body, rule, choice)
    _, ids = body.add("TopK", choice, body.length("top_k"), outputs=2, axis=-1)
    weights = _weights(body, rule, scores, logits, ids)
    _finish(body, rule.returns, hidden, ids, weights)
    return _function(body, routes[0], opset)


def _logits(body: Body, routes: Sequence[Route]) -> tuple[str, str]:
    """The logits [T, E] that the rule sees, and the mask [T, E] of experts that may be chosen, or ''."""
    if not any(route.uses_geometry for route in routes):
        return _gate_logits(body, routes), ""
    scores = _geometric_scores(body)
    if not any(route.uses_gate for route in routes):
        return scores, ""
    mask = _candidate_mask(body, routes[0], scores)
    exact = _gate_logits(body, routes)
    trusted = mask
    if any(route.mode == "geometric" for route in routes):
        flag = body.add("Cast", body.attribute("exact_candidates"), to=TensorProto.BOOL)
        trusted = body.add("And", mask, flag)
    return body.add("Where", trusted, exact, body.add("CastLike", _completion(body, scores), exact)), mask


def _completion(body: Body, scores: str) -> str:
    """The log-normal mean of the logits: what completes a softmax denominator outside the candidates."""
    spread = PREFIX + "spread"
    square = body.add("Mul", spread, spread)
    return str(body.add("Add", scores, body.add("Div", square, body.number(2.0, square))))


def _geometric_scores(body: Body) -> str:
    """z~ float32 [T, E]; the common mode is the last row of projection and directions."""
    states = body.add("Cast", PREFIX + "hidden", to=TensorProto.FLOAT)
    centred = body.add("Sub", states, PREFIX + "mean")
    points = body.add("MatMul", centred, body.add("Transpose", PREFIX + "projection", perm=[1, 0]))
    linear = body.add("MatMul", points, body.add("Transpose", PREFIX + "directions", perm=[1, 0]))
    return str(body.add("Add", linear, PREFIX + "beta"))


def _gate_logits(body: Body, routes: Sequence[Route]) -> str:
    hidden, weight, bias = (PREFIX + name for name in ("hidden", "gate_weight", "gate_bias"))
    if routes[0].rule.linear == "float32":
        hidden, weight, bias = (
            body.add("Cast", name, to=TensorProto.FLOAT) for name in (hidden, weight, bias)
        )
    out = body.add("MatMul", hidden, body.add("Transpose", weight, perm=[1, 0]))
    return str(body.add("Add", out, bias) if any(route.gate_bias for route in routes) else out)


def _candidate_mask(body: Body, route: Route, scores: str) -> str:
    """Bool [T, E]: the C experts of highest choice score, each given the benefit of its spread."""
    widened = body.add("Add", scores, PREFIX + "spread")
    choice = _choice(body, route.rule, _expert_scores(body, route.rule, widened))
    _, ids = body.add("TopK", choice, body.length("candidates"), outputs=2, axis=-1)
    return _chosen(body, choice, ids)


def _chosen(body: Body, like: str, ids: str) -> str:
    """Bool mask in the shape of `like`, true at the positions `ids` of the last axis."""
    zeros = body.add("ConstantOfShape", body.add("Shape", like))
    ones = body.add(
        "ConstantOfShape", body.add("Shape", ids), value=helper.make_tensor("", TensorProto.FLOAT, [1], [1.0])
    )
    marked = body.add("ScatterElements", zeros, ids, ones, axis=1)
    return str(body.add("Cast", marked, to=TensorProto.BOOL))


def _bent_logits(body: Body, rule: Any, logits: str) -> str:
    """Logits after the family's own scaling and soft cap."""
    if rule.logit_scale != 1.0:
        logits = body.scaled("Mul", logits, "logit_scale")
    if rule.softcap:
        logits = body.scaled("Mul", body.add("Tanh", body.scaled("Div", logits, "softcap")), "softcap")
    return logits


def _expert_scores(body: Body, rule: Any, logits: str) -> str:
    if rule.scores == "float32":
        logits = body.add("Cast", logits, to=TensorProto.FLOAT)
    logits = _bent_logits(body, rule, logits)
    if rule.score == "softmax":
        return str(body.add("Softmax", logits, axis=-1))
    if rule.score == "sigmoid":
        return str(body.add("Sigmoid", logits))
    if rule.score == "sqrtsoftplus":
        return str(body.add("Sqrt", body.add("Softplus", logits)))
    return logits


def _choice(body: Body, rule: Any, scores: str) -> str:
    """A float32 bias lifts scores of half precision, as torch's promotion does."""
    if not rule.choice_bias:
        return scores
    return str(body.add("Add", body.add("Cast", scores, to=TensorProto.FLOAT), PREFIX + "choice_bias"))


def _limit_groups(body: Body, rule: Any, choice: str) -> str:
    """Fills every group of experts but the best `groups_kept`."""
    # Every length is named: an inferred one (-1) fails for no tokens at all.
    size = body.add("Div", body.length("experts"), body.length("groups"))
    shape = body.add("Concat", body.ints(0), body.length("groups"), size, axis=0)
    grouped = body.add("Reshape", choice, shape)
    if rule.group_score == "top2":
        best, _ = body.add("TopK", grouped, body.ints(2), outputs=2, axis=-1)
        totals = body.add("ReduceSum", best, body.ints(-1), keepdims=0)
    else:
        totals = body.add("ReduceMax", grouped, body.ints(-1), keepdims=0)
    _, kept = body.add("TopK", totals, body.length("groups_kept"), outputs=2, axis=-1)
    inside = body.add("Unsqueeze", _chosen(body, totals, kept), body.ints(-1))
    fill = body.number(float("-inf") if rule.group_fill == "-inf" else 0.0, grouped)
    return str(body.add("Reshape", body.add("Where", inside, grouped, fill), body.add("Shape", choice)))


def _weights(body: Body, rule: Any, scores: str, logits: str, ids: str) -> str:
    if rule.weight == "sparsemixer":
        return body.scaled("Mul", _sparsemixer(body, rule, logits, ids), "scale")
    chosen = _gather(body, scores if rule.weight == "score" else _bent_logits(body, rule, logits), ids)
    if rule.weight == "softmax":
        chosen = body.add("Softmax", body.add("Cast", chosen, to=TensorProto.FLOAT), axis=-1)
    elif rule.weight == "sigmoid":
        chosen = body.add("Sigmoid", chosen)
    if rule.normalise:
        total = body.add("ReduceSum", chosen, body.ints(-1), keepdims=1)
        if rule.normalise_min:
            total = body.scaled("Max", total, "normalise_min")
        chosen = body.add("Div", chosen, body.scaled("Add", total, "normalise_eps"))
    return body.scaled("Mul", chosen, "scale")


def _gather(body: Body, values: str, ids: str) -> str:
    """Not GatherElements: onnx's own reference evaluator fails on more than 64 columns."""
    return str(body.add("GatherND", values, body.add("Unsqueeze", ids, body.ints(-1)), batch_dims=1))


def _sparsemixer(body: Body, rule: Any, logits: str, ids: str) -> str:
    """Each pick's share of a softmax over the logits near it, earlier picks left out (Liu et al. 2024)."""
    weights, left = [], logits
    lowest, limit = body.number(float("-inf"), logits), body.attribute("threshold", "float")
    for pick in range(rule.top_k):
        chosen = body.add("Slice", ids, body.ints(pick), body.ints(pick + 1), body.ints(1))
        best = body.add("ReduceMax", left, body.ints(-1), keepdims=1)
        reach = body.add("Max", body.add("Abs", logits), best)
        gap = body.add("Div", body.add("Sub", best, logits), reach)
        far = body.add("Greater", gap, body.add("CastLike", limit, gap))
        mine = _chosen(body, logits, chosen)
        far = body.add("And", far, body.add("Not", mine))
        near = body.add("Softmax", body.add("Where", far, lowest, left), axis=-1)
        weights.append(_gather(body, near, chosen))
        left = body.add("Where", mine, lowest, left)
    return str(body.add("Concat", *weights, axis=1))


def _finish(body: Body, returns: str, hidden: str, ids: str, weights: str) -> None:
    ids_out, weights_out = (PREFIX + name for name in OUTPUTS)
    body.nodes.append(helper.make_node("Cast", [ids], [ids_out], to=TensorProto.INT32))
    if returns == "float32":
        body.nodes.append(helper.make_node("Cast", [weights], [weights_out], to=TensorProto.FLOAT))
    else:
        body.nodes.append(helper.make_node("CastLike", [weights, hidden], [weights_out]))


def _function(body: Body, route: Route, opset: int) -> FunctionProto:
    defaults = [helper.make_attribute(name, value) for name, value in route.attributes().items()]
    return helper.make_function(
        DOMAIN,
        NAME,
        [PREFIX + name for name in INPUTS],
        [PREFIX + name for name in OUTPUTS],
        body.nodes,
        [helper.make_opsetid("", opset)],
        [],
        defaults,
        doc_string="Chooses and weighs the experts of every token; see docs/deploy.md.",
    )


def route_node(route: Route, inputs: Sequence[str], outputs: Sequence[str]) -> NodeProto:
    """The call of one layer: its arrays are tensors named `inputs[1:]`."""
    attributes: dict[str, Any] = route.attributes()
    return helper.make_node(
        NAME, list(inputs), list(outputs), name=f"{NAME}.{route.path}", domain=DOMAIN, **attributes
    )


def route_tensors(route: Route, prefix: str) -> list[onnx.TensorProto]:
    """The arrays of a route as initialisers named `{prefix}.{array}`."""
    return [onnx.numpy_helper.from_array(route.arrays[name], f"{prefix}.{name}") for name in INPUTS[1:]]
