"""Gives the placeholders of a decoder skeleton their meaning: routes, experts, attention, cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import onnx
from onnx import ModelProto, NodeProto, helper

from spectral_convert.export.experts import ExpertsForm, expert_nodes
from spectral_convert.export.function import route_node, route_tensors
from spectral_convert.export.graphs import wrap
from spectral_convert.export.nodes import Nodes
from spectral_convert.export.routes import INPUTS, Route
from spectral_convert.export.trace import PLACEHOLDERS, Skeleton

OPSETS = {"scatter": 24, "concat": 18}
"""TensorScatter and Attention with a cache of their own came with opset 24."""


def decoder_model(skeleton: Skeleton, routes: Sequence[Route], experts: ExpertsForm = "dense") -> ModelProto:
    """A complete model from a skeleton, which is left as it is.

    Args:
        skeleton: of the model the routes were made for.
        routes: one per router.
        experts: how the experts are computed.

    Raises:
        ModelError: rules of different structure, or experts that this form cannot express.
    """
    graph = onnx.GraphProto()
    graph.CopyFrom(skeleton.model.graph)
    writers = _writers(skeleton, routes, experts)
    nodes: list[NodeProto] = []
    for node in graph.node:
        if node.domain == PLACEHOLDERS:
            nodes.extend(writers[node.op_type](node, Nodes(graph, f"{node.op_type.lower()}_{len(nodes)}")))
        else:
            nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    graph.name = "spectral_decoder"
    drop_unused(graph)
    model = wrap(graph, routes, OPSETS[skeleton.cache])
    if experts == "ort_moe":
        model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    if experts == "trt_moe":
        model.opset_import.append(helper.make_opsetid("trt", 1))
    return model


Writer = Callable[[NodeProto, Nodes], Sequence[NodeProto]]


def _writers(skeleton: Skeleton, routes: Sequence[Route], experts: ExpertsForm) -> dict[str, Writer]:
    reasons = iter(skeleton.experts)
    return {
        "Route": lambda node, out: _route(node, out, routes),
        "Experts": lambda node, out: expert_nodes(node, out, experts, next(reasons, "")),
        "Cache": lambda node, _: [
            helper.make_node("TensorScatter", node.input, node.output, node.name, axis=2)
        ],
        "Attention": _attention if skeleton.cache == "scatter" else _plain_attention,
    }


def _route(node: NodeProto, out: Nodes, routes: Sequence[Route]) -> Sequence[NodeProto]:
    number = next(helper.get_attribute_value(a) for a in node.attribute if a.name == "layer")
    tensors = route_tensors(routes[number], f"layers.{number}.route")
    out.graph.initializer.extend(tensors)
    names = [node.input[0], *(tensor.name for tensor in tensors)]
    assert len(names) == len(INPUTS)
    return [route_node(routes[number], names, node.output)]


def _scatter(node: NodeProto, _: Nodes) -> Sequence[NodeProto]:
    return [helper.make_node("TensorScatter", node.input, node.output, node.name, axis=2)]


def _attention(node: NodeProto, _: Nodes) -> Sequence[NodeProto]:
    """The mask says which columns of the static cache are filled; the operator groups the heads itself."""
    return [helper.make_node("Attention", node.input, node.output, node.name, scale=_scale(node))]


def _plain_attention(node: NodeProto, out: Nodes) -> Sequence[NodeProto]:
    """Attention of opset 18 operators; query heads of one group share a key head by broadcasting."""
    query, key, value, mask = node.input
    parts = (out.ints(0), out.size_of(key, 1), out.ints(-1), out.tail_of(query, 2))
    heads = out.reshape(query, out.concat(*parts))
    keys, values = (out.add("Unsqueeze", name, out.ints(2)) for name in (key, value))
    turned = out.add("Transpose", keys, perm=[0, 1, 2, 4, 3])
    scores = out.add("MatMul", out.add("Mul", heads, out.number(_scale(node), query)), turned)
    lowest = out.number(-1e9, query)
    visible = out.add("Where", out.add("Unsqueeze", mask, out.ints(2)), scores, lowest)
    mixed = out.add("MatMul", out.add("Softmax", visible, axis=-1), values)
    shape = out.concat(out.ints(0), out.size_of(query, 1), out.size_of(query, 2), out.ints(-1))
    out.add("Reshape", mixed, shape, named=node.output[0])
    return out.nodes


def _scale(node: NodeProto) -> float:
    return float(next(helper.get_attribute_value(a) for a in node.attribute if a.name == "scale"))


def drop_unused(graph: onnx.GraphProto) -> None:
    """Removes nodes and initialisers that nothing reads, and value infos of tensors that are gone."""
    needed = {value.name for value in graph.output}
    kept = []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            needed.update(node.input)
            kept.append(node)
    del graph.node[:]
    graph.node.extend(reversed(kept))
    tensors = [tensor for tensor in graph.initializer if tensor.name in needed]
    del graph.initializer[:]
    graph.initializer.extend(tensors)
    del graph.value_info[:]
