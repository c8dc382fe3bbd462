"""ONNX graphs of routers alone: hidden states in, expert ids and weights out."""

from __future__ import annotations

from collections.abc import Sequence

import onnx
from onnx import TensorProto, ValueInfoProto, helper

from spectral_convert.export.function import DOMAIN, VERSION, route_function, route_node, route_tensors
from spectral_convert.export.routes import OUTPUTS, Route

OPSET = 18
"""The oldest that the function needs: ReduceMax with its axes as an input."""
IR_VERSION = 10

TYPES = {
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "bfloat16": TensorProto.BFLOAT16,
}


def routers_model(routes: Sequence[Route], dtype: str = "float32") -> onnx.ModelProto:
    """One model whose layer i maps `hidden.i` [T, D] to `ids.i` int32 [T, K] and `weights.i` [T, K].

    Args:
        routes: the layers; a single one has inputs and outputs without a number.
        dtype: of hidden states and weights.

    Raises:
        ModelError: the layers' rules differ in structure.
    """
    graph = onnx.GraphProto(name="spectral_routers")
    for number, route in enumerate(routes):
        suffix = f".{number}" if len(routes) > 1 else ""
        names = [f"hidden{suffix}", *(f"{name}{suffix}" for name in OUTPUTS)]
        tensors = route_tensors(route, f"layers.{number}")
        inputs = [names[0], *(tensor.name for tensor in tensors)]
        graph.node.append(route_node(route, inputs, names[1:]))
        graph.initializer.extend(tensors)
        _declare(graph, route, names, dtype)
    return wrap(graph, routes, OPSET)


def _declare(graph: onnx.GraphProto, route: Route, names: Sequence[str], dtype: str) -> None:
    kind = TYPES[dtype]
    returned = TensorProto.FLOAT if route.rule.returns == "float32" else kind
    tokens, chosen = "tokens", route.rule.top_k
    graph.input.append(_value(names[0], kind, [tokens, route.hidden]))
    graph.output.append(_value(names[1], TensorProto.INT32, [tokens, chosen]))
    graph.output.append(_value(names[2], returned, [tokens, chosen]))


def _value(name: str, kind: int, shape: list[str | int]) -> ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def wrap(graph: onnx.GraphProto, routes: Sequence[Route], opset: int) -> onnx.ModelProto:
    """The graph as a model that carries the meaning of its `BvhRoute` nodes."""
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", opset), helper.make_opsetid(DOMAIN, VERSION)],
        functions=[route_function(routes, opset)],
        producer_name="spectral",
    )
    model.ir_version = IR_VERSION
    return model
