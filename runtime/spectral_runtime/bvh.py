"""Builds the BVH over the expert spheres of one layer; thin over the native builder."""

from __future__ import annotations

import numpy as np

from spectral_runtime import reference
from spectral_runtime.errors import ConfigError
from spectral_runtime.geometry import Bvh, Floats, Geometry

try:
    from spectral_runtime import _native
except ImportError:  # a source tree without a compiler: the reference builder serves
    _native = None  # type: ignore[assignment]

LEAF_SIZE = 16
"""Experts in a leaf: one SIMD block of the CPU router, half a warp."""


def build_bvh(
    geometry: Geometry,
    choice_bias: Floats | None = None,
    *,
    leaf_size: int = LEAF_SIZE,
    query_scale: Floats | None = None,
    threads: int = 0,
) -> Bvh:
    """Returns the tree, the same bits whatever the number of threads.

    Splits by a binned surface heuristic (Wald 2007) on the mean width of the boxes in units of the score.

    Args:
        geometry: the router; every number of its spheres must be finite.
        choice_bias: float32 [E], for gate rules that have one.
        leaf_size: most experts in a leaf.
        query_scale: float32 [R], typical size of the projected coordinates; None takes the experts' own.
        threads: 0 means one per core.

    Raises:
        ConfigError: NaN or infinity in the spheres, a wrong shape, or a leaf size below 1.
    """
    if leaf_size < 1:
        raise ConfigError("leaf_size", expected="at least 1", found=str(leaf_size))
    if _native is None:
        _refuse_not_finite(geometry, choice_bias)
        return reference.build_tree(geometry, choice_bias, leaf_size)
    arrays = _native.build_bvh(
        geometry.centres, geometry.colour, geometry.beta,
        choice_bias=choice_bias, query_scale=query_scale, leaf_size=leaf_size, threads=threads,
    )  # fmt: skip
    return Bvh(**arrays)


def _refuse_not_finite(geometry: Geometry, choice_bias: Floats | None) -> None:
    arrays = {"centres": geometry.centres, "colour": geometry.colour, "beta": geometry.beta}
    if choice_bias is not None:
        arrays["choice_bias"] = choice_bias
    for name, values in arrays.items():
        if not np.isfinite(values).all():
            remedy = "fit again: the geometry is damaged"
            raise ConfigError(name, expected="finite numbers", found="NaN or infinity", remedy=remedy)
