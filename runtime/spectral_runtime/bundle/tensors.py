"""The one table of a bundle's tensors: name, dtype, shape letters and when a layer carries it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from spectral_runtime.bundle.manifest import LayerEntry

When = Literal["geometry", "centred", "choice_bias", "gate_rows", "gate_bias"]


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One row of the table; the full name in the file is `layers.{index}.{name}`."""

    name: str
    dtype: Literal["F32", "I32"]
    shape: str
    """Letters (E, D, R, L, S, N) and numbers, separated by spaces."""
    when: When
    """geometry: every layer whose mode is not `dense`; choice_bias: those of them whose rule has one;
    the others: layers whose entry says so."""


# D hidden, E experts, L levels, S colour, R = 3L + S, N nodes.
TENSORS: tuple[TensorSpec, ...] = (
    TensorSpec("mean", "F32", "D", "geometry"),
    TensorSpec("projection", "F32", "R D", "geometry"),
    TensorSpec("centres", "F32", "L E 3", "geometry"),
    TensorSpec("radii", "F32", "L E", "geometry"),
    TensorSpec("colour", "F32", "E S", "geometry"),
    TensorSpec("beta", "F32", "E", "geometry"),
    TensorSpec("residual", "F32", "E", "geometry"),
    TensorSpec("spread", "F32", "E", "geometry"),
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


@dataclass(frozen=True, slots=True)
class TensorShape:
    """What one tensor of one layer must be."""

    dtype: str
    shape: tuple[int, ...]


def layer_tensors(entry: LayerEntry) -> dict[str, TensorShape]:
    """The tensors that a layer with this entry carries, by their name in the table."""
    sizes = letter_sizes(entry)
    return {
        spec.name: TensorShape(spec.dtype, tuple(_size(part, sizes) for part in spec.shape.split()))
        for spec in TENSORS
        if carries(entry, spec.when)
    }


def _size(part: str, sizes: dict[str, int]) -> int:
    return sizes[part] if part in sizes else int(part)


def letter_sizes(entry: LayerEntry) -> dict[str, int]:
    """The value of every shape letter for this layer."""
    rank = 3 * entry.levels + entry.colour
    return {
        "D": entry.hidden,
        "E": entry.rule.experts,
        "L": entry.levels,
        "S": entry.colour,
        "R": rank,
        "N": entry.nodes,
    }


def carries(entry: LayerEntry, when: When) -> bool:
    """Whether a layer with this entry carries the tensors of that row."""
    if when == "geometry":
        return entry.mode != "dense"
    if when == "choice_bias":
        return entry.rule.choice_bias and entry.mode != "dense"
    return {"centred": entry.centred, "gate_rows": entry.gate_rows, "gate_bias": entry.gate_bias}[when]
