"""The one table of a bundle's tensors: name, dtype, shape letters and when a layer carries it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

When = Literal["geometry", "centred", "choice_bias", "gate_rows", "gate_bias"]


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One row of the table; the full name in the file is `layers.{index}.{name}`."""

    name: str
    dtype: Literal["F32", "I32"]
    shape: str
    """Letters (E, D, R, L, S, N) and numbers, separated by spaces."""
    when: When
    """geometry: every layer whose mode is not `dense`; the others: layers that declare them."""


# D hidden, E experts, L levels, S colour, R = 3L + S, N nodes.
TENSORS: tuple[TensorSpec, ...] = (
    TensorSpec("mean", "F32", "D", "geometry"),
    TensorSpec("projection", "F32", "R D", "geometry"),
    TensorSpec("centres", "F32", "L E 3", "geometry"),
    TensorSpec("radii", "F32", "L E", "geometry"),
    TensorSpec("colour", "F32", "E S", "geometry"),
    TensorSpec("beta", "F32", "E", "geometry"),
    TensorSpec("residual", "F32", "E", "geometry"),
    TensorSpec("common", "F32", "D", "centred"),
    TensorSpec("choice_bias", "F32", "E", "choice_bias"),
    TensorSpec("bvh.lower", "F32", "N R", "geometry"),
    TensorSpec("bvh.upper", "F32", "N R", "geometry"),
    TensorSpec("bvh.power", "F32", "N L", "geometry"),
    TensorSpec("bvh.beta", "F32", "N", "geometry"),
    TensorSpec("bvh.choice_bias", "F32", "N", "geometry"),
    TensorSpec("bvh.first", "I32", "N", "geometry"),
    TensorSpec("bvh.count", "I32", "N", "geometry"),
    TensorSpec("bvh.experts", "I32", "E", "geometry"),
    TensorSpec("gate.weight", "F32", "E D", "gate_rows"),
    TensorSpec("gate.bias", "F32", "E", "gate_bias"),
)
