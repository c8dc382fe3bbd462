"""Adds nodes to an ONNX graph one call at a time, with names that are theirs alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx
from onnx import NodeProto, helper


class Nodes:
    """The nodes that one placeholder becomes; `prefix` must be unique in the graph."""

    def __init__(self, graph: onnx.GraphProto, prefix: str) -> None:
        self.graph, self.prefix = graph, prefix
        self.nodes: list[NodeProto] = []

    def add(self, kind: str, *inputs: str, named: str = "", domain: str = "", **attributes: Any) -> str:
        """Appends a node of one output, called `named` or a name of its own, and returns that name."""
        name = named or f"{self.prefix}.{kind}_{len(self.nodes)}"
        node = helper.make_node(kind, list(inputs), [name], name=name, domain=domain, **attributes)
        self.nodes.append(node)
        return name

    def ints(self, *values: int) -> str:
        """A constant int64 vector."""
        return self.add("Constant", value_ints=list(values))

    def number(self, value: float, like: str) -> str:
        """A constant in the dtype of the tensor `like`."""
        return self.add("CastLike", self.add("Constant", value_float=value), like)

    def size_of(self, tensor: str, axis: int) -> str:
        """The length of one axis, int64 [1]."""
        return self.add("Shape", tensor, start=axis, end=axis + 1)

    def tail_of(self, tensor: str, axis: int) -> str:
        """The lengths from an axis on."""
        return self.add("Shape", tensor, start=axis)

    def concat(self, *parts: str) -> str:
        """Several int64 vectors as one."""
        return self.add("Concat", *parts, axis=0)

    def reshape(self, tensor: str, shape: str) -> str:
        """The tensor in another shape."""
        return self.add("Reshape", tensor, shape)

    def split(self, tensor: str, parts: int, axis: int) -> Sequence[str]:
        """Equal parts along an axis."""
        names = [f"{self.prefix}.Split_{len(self.nodes)}_{i}" for i in range(parts)]
        self.nodes.append(helper.make_node("Split", [tensor], names, axis=axis, num_outputs=parts))
        return names
