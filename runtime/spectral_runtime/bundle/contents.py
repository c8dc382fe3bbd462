"""What a bundle holds in memory, and which array of the file is which field."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spectral_runtime.bundle.manifest import LayerEntry, Manifest
from spectral_runtime.geometry import Bvh, Floats, Geometry, sphere_radii

Array = NDArray[Any]

GEOMETRY_FIELDS = ("mean", "projection", "centres", "colour", "beta", "residual", "spread", "common")
BVH_FIELDS = ("lower", "upper", "power", "beta", "choice_bias", "first", "count", "experts")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LayerTensors:
    """One layer: its entry in the manifest and its arrays, read-only when they come from a file."""

    entry: LayerEntry
    geometry: Geometry | None = None
    """None in the mode `dense`."""
    bvh: Bvh | None = None
    """None in the mode `dense`."""
    choice_bias: Floats | None = None
    """float32 [E], where the rule has one and the mode is not `dense`."""
    gate_weight: Floats | None = None
    """float32 [E, D], where `entry.gate_rows`."""
    gate_bias: Floats | None = None
    """float32 [E], where `entry.gate_bias`."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Bundle:
    """A validated bundle; every array may be used without another check."""

    path: Path
    """The folder that holds `spectral_config.json`."""
    manifest: Manifest
    layers: tuple[LayerTensors, ...]


def tensor_name(index: int, name: str) -> str:
    """The name in the file of tensor `name` of layer `index`."""
    return f"layers.{index}.{name}"


def arrays_of(layer: LayerTensors) -> dict[str, Array]:
    """The arrays of a layer by their name in the table, absent ones left out."""
    found: dict[str, Array | None] = {
        "choice_bias": layer.choice_bias,
        "gate.weight": layer.gate_weight,
        "gate.bias": layer.gate_bias,
    }
    if layer.geometry is not None:
        found |= {name: getattr(layer.geometry, name) for name in GEOMETRY_FIELDS}
        found["radii"] = sphere_radii(layer.geometry)
    if layer.bvh is not None:
        found |= {f"bvh.{name}": getattr(layer.bvh, name) for name in BVH_FIELDS}
    return {name: np.asarray(array) for name, array in found.items() if array is not None}


def layer_of(entry: LayerEntry, arrays: Mapping[str, Array]) -> LayerTensors:
    """The layer whose arrays, named as in the table, are these."""
    geometry = Geometry(**{name: arrays.get(name) for name in GEOMETRY_FIELDS}) if "mean" in arrays else None  # type: ignore[arg-type]
    bvh = Bvh(**{name: arrays[f"bvh.{name}"] for name in BVH_FIELDS}) if "bvh.first" in arrays else None
    return LayerTensors(
        entry=entry,
        geometry=geometry,
        bvh=bvh,
        choice_bias=arrays.get("choice_bias"),
        gate_weight=arrays.get("gate.weight"),
        gate_bias=arrays.get("gate.bias"),
    )
