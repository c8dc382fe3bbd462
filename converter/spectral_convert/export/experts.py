"""The experts of a layer in ONNX: all of them, the chosen ones gathered, or a fused operator of a runtime."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from onnx import NodeProto, TensorProto, helper, numpy_helper

from spectral_convert.export.nodes import Nodes
from spectral_runtime.errors import ModelError

ExpertsForm = Literal["dense", "gather", "ort_moe", "trt_moe"]
FORMS: tuple[ExpertsForm, ...] = ("dense", "gather", "ort_moe", "trt_moe")
UNCHOSEN = -1e9
"""Log-weight of an expert that was not chosen."""

Inputs = Sequence[str]
"""hidden [T, D], ids int64 [T, K], weights [T, K], gate and up [E, 2I, D], down [E, D, I]."""


def expert_nodes(node: NodeProto, out: Nodes, form: ExpertsForm, reason: str) -> Sequence[NodeProto]:
    """The nodes that compute what an `Experts` placeholder stands for.

    Raises:
        ModelError: `reason` says why these experts are not of the plain gated kind.
    """
    if reason:
        remedy = "export with experts=gather, which takes the model's own code"
        raise ModelError(node.name, expected="gated SiLU experts without bias", found=reason, remedy=remedy)
    _WRITERS[form](out, node.input, node.output[0])
    return out.nodes


def _dense(out: Nodes, inputs: Inputs, to: str) -> None:
    """Every expert for every token, weighted by a [T, E] matrix, zero where not chosen: static shapes."""
    hidden, ids, weights, gate_up, down = inputs
    table = weight_table(out, ids, weights, gate_up, 0.0)
    states = out.add("Unsqueeze", hidden, out.ints(0))
    middle = _gated(out, out.add("MatMul", states, out.add("Transpose", gate_up, perm=[0, 2, 1])))
    share = out.add("Unsqueeze", out.add("Transpose", table, perm=[1, 0]), out.ints(2))
    each = out.add("MatMul", out.add("Mul", middle, share), out.add("Transpose", down, perm=[0, 2, 1]))
    out.add("ReduceSum", each, out.ints(0), keepdims=0, named=to)


def _gather(out: Nodes, inputs: Inputs, to: str) -> None:
    """The K chosen slices of the weights per token and a batched product: for few tokens a call."""
    hidden, ids, weights, gate_up, down = inputs
    states = out.add("Unsqueeze", out.add("Unsqueeze", hidden, out.ints(1)), out.ints(3))
    rows, columns = (out.add("Gather", name, ids, axis=0) for name in (gate_up, down))
    both = out.add("Squeeze", out.add("MatMul", rows, states), out.ints(3))
    middle = out.add("Unsqueeze", _gated(out, both), out.ints(3))
    each = out.add("Squeeze", out.add("MatMul", columns, middle), out.ints(3))
    share = out.add("CastLike", out.add("Unsqueeze", weights, out.ints(2)), hidden)
    out.add("ReduceSum", out.add("Mul", each, share), out.ints(1), keepdims=0, named=to)


def _ort_moe(out: Nodes, inputs: Inputs, to: str) -> None:
    """ONNX Runtime's MoE routes by a softmax: it gets the logarithms of our weights, scaled to sum to one."""
    hidden, ids, weights, gate_up, down = inputs
    total = out.add("ReduceSum", weights, out.ints(-1), keepdims=1)
    logs = out.add("Log", out.add("Div", weights, total))
    table = weight_table(out, ids, logs, gate_up, UNCHOSEN)
    moe = out.add(
        "MoE",
        hidden,
        out.add("CastLike", table, hidden),
        _interleaved(out, gate_up),
        "",
        down,
        domain="com.microsoft",
        k=_top_k(out, ids),
        activation_type="swiglu",
        activation_alpha=1.0,
        activation_beta=0.0,
        swiglu_fusion=1,
        normalize_routing_weights=0,
    )
    out.add("Mul", moe, out.add("CastLike", total, hidden), named=to)


def _trt_moe(out: Nodes, inputs: Inputs, to: str) -> None:
    """TensorRT's own MoE layer takes experts and scores as they are; it runs on SM 10.x and 11.x only."""
    hidden, ids, weights, gate_up, down = inputs
    one = out.ints(0)
    gate, up = out.split(gate_up, 2, axis=1)
    operands = [
        out.add("Unsqueeze", hidden, one),
        out.add("Unsqueeze", out.add("Cast", ids, to=TensorProto.INT32), one),
        out.add("CastLike", out.add("Unsqueeze", weights, one), hidden),
        *(out.add("Transpose", name, perm=[0, 2, 1]) for name in (gate, up, down)),
    ]
    moe = out.add("TRT_MoE", *operands, domain="trt", activation_type="silu")
    out.add("Squeeze", moe, one, named=to)


def weight_table(out: Nodes, ids: str, values: str, gate_up: str, elsewhere: float) -> str:
    """The values [T, K] scattered into [T, E], `elsewhere` where no expert was chosen."""
    shape = out.concat(out.size_of(ids, 0), out.size_of(gate_up, 0))
    fill = helper.make_tensor("", TensorProto.FLOAT, [1], [elsewhere])
    empty = out.add("CastLike", out.add("ConstantOfShape", shape, value=fill), values)
    return out.add("ScatterElements", empty, ids, values, axis=1)


def _gated(out: Nodes, both: str) -> str:
    """silu(gate) * up for [..., 2I], gate first."""
    gate, up = out.split(both, 2, axis=-1)
    return out.add("Mul", out.add("Mul", gate, out.add("Sigmoid", gate)), up)


def _top_k(out: Nodes, ids: str) -> int:
    """K, from what the skeleton says about the ids."""
    node = next(n for n in out.graph.node if ids in n.output)
    source = node.input[0] if node.op_type == "Cast" else ids
    info = next(v for v in out.graph.value_info if v.name in (ids, source))
    return int(info.type.tensor_type.shape.dim[-1].dim_value)


def _interleaved(out: Nodes, gate_up: str) -> str:
    """An initialiser whose rows are gate 0, up 0, gate 1, up 1: the layout of `swiglu_fusion=1`."""
    name = f"{gate_up}.interleaved"
    tensor = next(t for t in out.graph.initializer if t.name == gate_up)
    array = numpy_helper.to_array(tensor)
    experts, rows, hidden = array.shape
    mixed = array.reshape(experts, 2, rows // 2, hidden).swapaxes(1, 2).reshape(array.shape)
    out.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(mixed), name))
    return name


_WRITERS: dict[ExpertsForm, Callable[[Nodes, Inputs, str], None]] = {
    "dense": _dense,
    "gather": _gather,
    "ort_moe": _ort_moe,
    "trt_moe": _trt_moe,
}
