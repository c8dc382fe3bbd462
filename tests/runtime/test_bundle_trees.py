"""Every tree the builders make, on friendly and on hostile spheres, is one that the format accepts."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pico_bundles import make_geometry, make_layer, make_manifest, median_tree

from spectral_runtime.bundle import LayerTensors, write_bundle
from spectral_runtime.bvh import build_bvh
from spectral_runtime.geometry import Bvh, Geometry, widened
from spectral_runtime.reference import build_tree

Builder = Callable[[Geometry, "np.ndarray | None", int], Bvh]
BUILDERS: dict[str, Builder] = {
    "build_bvh": lambda geometry, bias, leaf: build_bvh(widened(geometry), bias, leaf_size=leaf, threads=2),
    "reference": lambda geometry, bias, leaf: build_tree(widened(geometry), bias, leaf),
    "median": median_tree,
}


def identical(geometry: Geometry) -> None:
    geometry.centres[:] = 1.0
    geometry.colour[:] = 0.0


def nested(geometry: Geometry) -> None:
    """Each sphere half as far as the one before: what makes surface heuristics build chains."""
    geometry.centres[:] = np.exp2(-(np.arange(geometry.experts) % 60), dtype=np.float32)[:, None]


def far(geometry: Geometry) -> None:
    geometry.centres[:] *= np.float32(1e15)


@pytest.mark.parametrize("builder", BUILDERS)
@pytest.mark.parametrize("experts", [1, 2, 17, 300])
@pytest.mark.parametrize(
    "shape", [None, identical, nested, far], ids=lambda shape: getattr(shape, "__name__", "plain")
)
@pytest.mark.parametrize("leaf", [1, 16])
def test_tree_is_accepted(
    tmp_path: Path,
    rng: np.random.Generator,
    builder: str,
    experts: int,
    shape: Callable[[Geometry], None] | None,
    leaf: int,
) -> None:
    geometry = make_geometry(rng, experts, hidden=8, levels=2, colour=1)
    if shape is not None:
        shape(geometry)
    rule = {"score": "sigmoid", "choice_bias": True}
    layer = make_layer(rng, experts=experts, hidden=8, levels=2, colour=1, top_k=1, rule=rule)
    bvh = BUILDERS[builder](geometry, layer.choice_bias, leaf)
    entry = dataclasses.replace(layer.entry, nodes=bvh.nodes)
    made = LayerTensors(entry=entry, geometry=geometry, bvh=bvh, choice_bias=layer.choice_bias)
    write_bundle(tmp_path / "b", make_manifest((made,)), (made,))
