"""The rules the arrays of a layer must meet: finite, true radii, a tree that is a tree, bounds that bound."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spectral_runtime.bundle.container import DTYPES
from spectral_runtime.bundle.contents import LayerTensors
from spectral_runtime.bundle.manifest import LayerEntry
from spectral_runtime.bundle.tensors import TensorShape, layer_tensors
from spectral_runtime.errors import BundleError
from spectral_runtime.geometry import Bvh, Geometry, widened

MAX_DEPTH = 64
"""Levels of nodes on any path; device code keeps a stack of this size."""
TOLERANCE = 1e-5
"""Relative; float32 rounding of a sum of four squares is ten times smaller."""

Array = NDArray[Any]
Wide = NDArray[np.float64]
Flags = NDArray[np.bool_]


def check_table(entry: LayerEntry, arrays: Mapping[str, Array], where: str) -> None:
    """Raises BundleError unless the arrays are exactly those the entry declares, in dtype and shape."""
    declared = layer_tensors(entry)
    for name, wanted in declared.items():
        if name not in arrays:
            raise BundleError(f"{where}.{name}", expected=_words(wanted), found="no such tensor")
        if _shape(arrays[name]) != wanted:
            raise BundleError(f"{where}.{name}", expected=_words(wanted), found=_words(_shape(arrays[name])))
    for name in sorted(set(arrays) - set(declared)):
        found = _words(_shape(arrays[name]))
        raise BundleError(f"{where}.{ascii(name)[1:-1][:80]}", expected="no such tensor", found=found)


def _shape(array: Array) -> TensorShape:
    names = {dtype: name for name, dtype in DTYPES.items()}
    return TensorShape(names.get(array.dtype.newbyteorder("<"), str(array.dtype)), array.shape)


def _words(tensor: TensorShape) -> str:
    return f"{tensor.dtype} {list(tensor.shape)}"


def check_layer(layer: LayerTensors, radii: Array | None, where: str) -> None:
    """Raises BundleError, naming tensor and position, unless the arrays of a layer can be used unchecked.

    Args:
        layer: the arrays, already of the declared dtypes and shapes.
        radii: float32 [L, E] as stored; None in the mode `dense`.
        where: the start of every message.
    """
    geometry, bvh = layer.geometry, layer.bvh
    if geometry is None or bvh is None or radii is None:
        return
    _refuse(geometry.residual < 0, f"{where}.residual", "a norm, at least 0", geometry.residual)
    _refuse(geometry.spread < 0, f"{where}.spread", "a deviation, at least 0", geometry.spread)
    _check_radii(geometry, radii, f"{where}.radii")
    check_tree(bvh, geometry.experts, f"{where}.bvh")
    _check_bounds(layer, geometry, bvh, f"{where}.bvh")


def check_finite(arrays: Mapping[str, Array], where: str) -> None:
    """Raises BundleError, naming tensor and position, at the first NaN or infinity."""
    for name, array in arrays.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            _refuse(~np.isfinite(array), f"{where}.{name}", "finite values", array)


def _squares(geometry: Geometry) -> Wide:
    """|c|^2, with the widened beta added on level 1: float64 [L, E]."""
    squared: Wide = np.square(geometry.centres.astype(np.float64)).sum(axis=-1)
    squared[0] += widened(geometry).beta
    return squared


def _check_radii(geometry: Geometry, radii: Array, where: str) -> None:
    squared = _squares(geometry)
    expected = squared - squared.min(axis=1, keepdims=True)
    slack = TOLERANCE * (expected + 0.1 * np.abs(squared).max(axis=1, keepdims=True))
    wrong = (radii < 0) | ~(np.abs(np.square(radii.astype(np.float64)) - expected) <= slack)
    _refuse(wrong, where, "the radii of centres and beta (r^2 = |c|^2 + beta + const)", radii)


def check_tree(bvh: Bvh, experts: int, where: str) -> None:
    """Raises BundleError unless the nodes are one binary tree whose leaves share out the experts."""
    first, count = bvh.first.astype(np.int64), bvh.count.astype(np.int64)
    _refuse(count < 0, f"{where}.count", "at least 0", count)
    _check_inner(first, count, where)
    _check_leaves(first, count, experts, where)
    out_of_range = (bvh.experts < 0) | (bvh.experts >= experts)
    _refuse(out_of_range, f"{where}.experts", f"a permutation of 0 to {experts - 1}", bvh.experts)
    times = np.bincount(bvh.experts, minlength=experts)
    _refuse(times[bvh.experts] != 1, f"{where}.experts", f"a permutation of 0 to {experts - 1}", bvh.experts)


def _check_inner(first: Array, count: Array, where: str) -> None:
    nodes = len(first)
    inner = np.flatnonzero(count == 0)
    children = first[inner]
    bad = np.zeros(nodes, dtype=bool)
    bad[inner] = (children < 0) | (children + 1 >= nodes)
    _refuse(bad, f"{where}.first", f"two children within {nodes} nodes", first)
    bad[inner] = children <= inner
    _refuse(bad, f"{where}.first", "children after their parent, so that no path returns", first)
    parents = np.bincount(np.concatenate([children, children + 1]), minlength=nodes)
    parents[0] += 1
    _refuse(parents != 1, f"{where}.first", "one parent for every node but the root", parents)
    _check_depth(first, count, where)


def _check_depth(first: Array, count: Array, where: str) -> None:
    row = np.zeros(1, dtype=np.int64)
    for _ in range(MAX_DEPTH):
        parents = row[count[row] == 0]
        if not len(parents):
            return
        row = np.concatenate([first[parents], first[parents] + 1])
    raise BundleError(
        f"{where}.first", expected=f"at most {MAX_DEPTH} nodes on any path", found="a deeper tree"
    )


def _check_leaves(first: Array, count: Array, experts: int, where: str) -> None:
    bad = np.where(count > 0, (first < 0) | (first + count > experts), False)
    _refuse(bad, f"{where}.first", f"leaves within {experts} experts", first)
    leaves = _leaves_in_order(first, count)
    starts = np.cumsum(count[leaves]) - count[leaves]
    bad[leaves] = first[leaves] != starts
    _refuse(bad, f"{where}.first", f"leaves that share out the {experts} experts, each once", first)
    if int(count.sum()) != experts:
        raise BundleError(
            f"{where}.count", expected=f"{experts} experts in the leaves", found=str(count.sum())
        )


def _leaves_in_order(first: Array, count: Array) -> Array:
    leaves = np.flatnonzero(count > 0)
    return leaves[np.argsort(first[leaves], kind="stable")]


def _check_bounds(layer: LayerTensors, geometry: Geometry, bvh: Bvh, where: str) -> None:
    """Every node's box and maxima cover its experts: leaves cover theirs, parents cover their children."""
    points = geometry.centres.transpose(1, 0, 2).reshape(geometry.experts, -1)
    points = np.concatenate([points, geometry.colour], axis=1)
    bias = np.zeros(geometry.experts, np.float32) if layer.choice_bias is None else layer.choice_bias
    power = _squares(geometry).T
    beta = widened(geometry).beta
    slack = TOLERANCE * (np.abs(power) + 2.0 * np.abs(beta[:, None].astype(np.float64)))
    _check_cover(bvh, -bvh.lower, -points, f"{where}.lower")
    _check_cover(bvh, bvh.upper, points, f"{where}.upper")
    _check_cover(bvh, bvh.power, power - slack, f"{where}.power")
    _check_cover(bvh, bvh.beta, beta, f"{where}.beta")
    _check_cover(bvh, bvh.choice_bias, bias, f"{where}.choice_bias")


def _check_cover(bvh: Bvh, bound: Array, values: Array, where: str) -> None:
    leaves = _leaves_in_order(bvh.first, bvh.count)
    owner = np.repeat(leaves, bvh.count[leaves])
    short = values[bvh.experts] > bound[owner]
    if short.any():
        node = owner[np.argwhere(short)[0][0]]
        raise BundleError(f"{where}[{node}]", expected="a bound on the leaf's experts", found="one too small")
    inner = np.flatnonzero(bvh.count == 0)
    for child in (bvh.first[inner], bvh.first[inner] + 1):
        short = bound[child] > bound[inner]
        if short.any():
            node = inner[np.argwhere(short)[0][0]]
            raise BundleError(
                f"{where}[{node}]", expected="a bound on the node's children", found="one too small"
            )


def _refuse(bad: Flags, where: str, expected: str, values: Array) -> None:
    if bad.any():
        at = tuple(int(i) for i in np.argwhere(bad)[0])
        raise BundleError(f"{where}[{', '.join(map(str, at))}]", expected=expected, found=str(values[at]))
