"""The fused CUDA routers as torch operators, so that `torch.compile` and CUDA graphs see one node per layer.

The operators take tensors and the number of a `Fused` value kept here; they launch on torch's current stream,
allocate only their outputs and can be captured.
"""

from __future__ import annotations

import os
from typing import Any

import torch

from spectral_runtime import cuda
from spectral_runtime.gate import GateRule
from spectral_runtime.geometry import Floats, Geometry

_KEPT: list[Any] = []
"""Values that operators name by number; a graph may outlive the layer, so they are never dropped."""

Triple = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def dtype_code(dtype: torch.dtype) -> int:
    """The native core's number of a floating dtype."""
    return cuda.DTYPES.index(str(dtype).removeprefix("torch."))


def stream_of(tensor: torch.Tensor) -> int:
    """Torch's current stream on the tensor's device, as an address."""
    return int(torch.cuda.current_stream(tensor.device).cuda_stream)


def enabled() -> bool:
    """Whether fused routers may be used: SPECTRAL_FUSED is 1 and a GPU back-end is there.

    Off unless asked for: they accumulate in float32, so `dense` chooses like the gate but is not bit-equal to it.
    """
    return os.environ.get("SPECTRAL_FUSED") == "1" and cuda.unavailable() is None


def bf16_planes(weight: torch.Tensor) -> torch.Tensor:
    """Bfloat16 [P * E, D], P in 1 to 3, that sum to a float32 weight [E, D]."""
    planes: list[torch.Tensor] = []
    rest = weight.float()
    while len(planes) < 3 and (not planes or bool(rest.any())):
        planes.append(rest.bfloat16())
        rest = rest - planes[-1].float()
    return torch.cat(planes)


class FusedGate:
    """The exact gate of one layer; rebuilt when the weight's memory moves."""

    def __init__(self, rule: GateRule, choice_bias: torch.Tensor | None, bias: torch.Tensor | None) -> None:
        self.rule = rule
        self.choice_bias = None if choice_bias is None else choice_bias.detach().float().contiguous()
        self.bias = None if bias is None else bias.detach().float().contiguous()
        self._built: tuple[int, torch.dtype, Any, torch.Tensor] | None = None

    def native(self, weight: torch.Tensor, kind: torch.dtype) -> Any:
        """`_native.CudaGate` for this weight and this dtype of hidden states."""
        if self._built is None or self._built[:2] != (weight.data_ptr(), kind):
            self._built = (weight.data_ptr(), kind, *self._build(weight.detach(), kind))
        return self._built[2]

    def _build(self, weight: torch.Tensor, kind: torch.dtype) -> tuple[Any, torch.Tensor]:
        planes, experts = 1, weight.shape[0]
        if kind == torch.bfloat16 and weight.dtype == torch.float32:
            weight = bf16_planes(weight)
            planes = len(weight) // experts
        elif kind != weight.dtype:
            weight = weight.float()
        round_to = "float32" if self.rule.linear == "float32" else str(kind).removeprefix("torch.")
        numbers = cuda.rule_numbers(self.rule, round_to)
        device = weight.device.index or 0
        kept = weight.contiguous()
        bias, choice = (0 if x is None else x.data_ptr() for x in (self.bias, self.choice_bias))
        native = cuda.native_gate(
            device, numbers, kept.data_ptr(), dtype_code(kept.dtype), planes, kept.shape[1], bias, choice
        )
        return native, kept

    def splits(self, native: Any, hidden: torch.Tensor, weight: torch.Tensor) -> bool:
        """Whether the library's product and a launch for the rule are faster than one launch, and the same."""
        same = hidden.dtype == weight.dtype and self.bias is None and self.rule.linear != "float32"
        return same and not native.fuses(hidden.shape[0])

    def pick(self, native: Any, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids int64 and weights [T, K] of logits [T, E]."""
        _, ids, weights = _outputs(logits, self.rule, None)
        native.pick(
            logits.data_ptr(), logits.stride(0), logits.shape[0], dtype_code(logits.dtype), ids.data_ptr(), True,
            weights.data_ptr(), dtype_code(weights.dtype), stream_of(logits),
        )  # fmt: skip
        return ids, weights


class FusedGeometry:
    """The geometric router of one layer with E up to 1 024: `geometric` (C = 0), or `prefilter` with C candidates."""

    def __init__(
        self,
        rule: GateRule,
        geometry: Geometry,
        choice_bias: Floats | None,
        candidates: int,
        *,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
    ) -> None:
        self.rule, self.candidates = rule, candidates
        round_to = "float32" if rule.linear == "float32" else str(weight.dtype).removeprefix("torch.")
        device = weight.device
        self.native = cuda.native_router(
            geometry, rule, None, choice_bias, device=device.index or 0, round_to=round_to
        )
        self.spread = torch.tensor(geometry.spread, device=device)
        self.bias = None if bias is None else bias.detach().float().contiguous()


def keep(value: FusedGate | FusedGeometry) -> int:
    """Keeps a value; returns the number by which the operators know it."""
    _KEPT.append(value)
    return len(_KEPT) - 1


def _outputs(hidden: torch.Tensor, rule: GateRule, logits: torch.dtype | None) -> Triple:
    kind = torch.float32 if rule.returns == "float32" else hidden.dtype
    tokens = hidden.shape[0]
    return (
        hidden.new_empty((tokens if logits else 0, rule.experts), dtype=logits),
        hidden.new_empty((tokens, rule.top_k), dtype=torch.int64),
        hidden.new_empty((tokens, rule.top_k), dtype=kind),
    )


@torch.library.custom_op("spectral::gate", mutates_args=())
def fused_gate(hidden: torch.Tensor, weight: torch.Tensor, number: int) -> Triple:
    """Logits [T, E], ids int64 [T, K] and weights [T, K] of hidden [T, D] by the exact gate."""
    value: FusedGate = _KEPT[number]
    hidden = _rows(hidden)
    native = value.native(weight, hidden.dtype)
    if value.splits(native, hidden, weight):
        logits = torch.nn.functional.linear(hidden, weight)
        return logits, *value.pick(native, logits)
    logits, ids, weights = _outputs(hidden, value.rule, _logits_dtype(value.rule, hidden))
    native.run(
        hidden.data_ptr(), hidden.stride(0), hidden.shape[0], dtype_code(hidden.dtype), ids.data_ptr(), True,
        weights.data_ptr(), dtype_code(weights.dtype), logits.data_ptr(), dtype_code(logits.dtype),
        stream_of(hidden),
    )  # fmt: skip
    return logits, ids, weights


@fused_gate.register_fake
def _(hidden: torch.Tensor, weight: torch.Tensor, number: int) -> Triple:
    del weight
    rule = _KEPT[number].rule
    return _outputs(hidden, rule, _logits_dtype(rule, hidden))


@torch.library.custom_op("spectral::geometry", mutates_args=())
def fused_geometry(hidden: torch.Tensor, weight: torch.Tensor, number: int) -> Triple:
    """The same by the geometric router; `weight` [E, D] gives the candidates' exact logits in `prefilter`."""
    value: FusedGeometry = _KEPT[number]
    hidden = _rows(hidden)
    logits, ids, weights = _outputs(hidden, value.rule, torch.float32)
    gate = weight.data_ptr() if value.candidates else 0
    spread = value.spread.data_ptr() if value.candidates else 0
    bias = 0 if value.bias is None else value.bias.data_ptr()
    value.native.select(
        hidden.data_ptr(), hidden.stride(0), hidden.shape[0], dtype_code(hidden.dtype), ids.data_ptr(), True,
        weights.data_ptr(), dtype_code(weights.dtype), logits.data_ptr(), 0, gate, dtype_code(weight.dtype), bias, spread,
        value.candidates, stream_of(hidden),
    )  # fmt: skip
    return logits, ids, weights


@fused_geometry.register_fake
def _(hidden: torch.Tensor, weight: torch.Tensor, number: int) -> Triple:
    del weight
    return _outputs(hidden, _KEPT[number].rule, torch.float32)


def _rows(hidden: torch.Tensor) -> torch.Tensor:
    """The same tokens with contiguous, 16-byte aligned rows; itself when it has them."""
    fine = (
        hidden.stride(-1) == 1
        and hidden.data_ptr() % 16 == 0
        and hidden.stride(0) * hidden.element_size() % 16 == 0
    )
    return hidden if fine else hidden.clone(memory_format=torch.contiguous_format)


def _logits_dtype(rule: GateRule, hidden: torch.Tensor) -> torch.dtype:
    return torch.float32 if rule.linear == "float32" else hidden.dtype
