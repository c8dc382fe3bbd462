"""Plain array values of a geometric router: projections, expert spheres, colour codes and the BVH over them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Ints = NDArray[np.int32]

# Letters: T tokens, D hidden, E experts, C candidates, L levels, S colour, R = 3L + S, N nodes.


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Geometry:
    """The geometric router of one layer; arrays are float32 and C-contiguous.

    The approximate logit of expert e is
    `sum_l 2 centres[l, e] . p_l + colour[e] . f + beta[e] + common . (x - mean)`, with
    `p_l = projection[3l : 3l+3] @ (x - mean)` and `f = projection[3L:] @ (x - mean)`.
    """

    mean: Floats
    """[D], the calibration mean of the router's input."""
    projection: Floats
    """[R, D], three rows a level, most informative level first, then S colour rows."""
    centres: Floats
    """[L, E, 3], sphere centres: half of the linear coefficients."""
    colour: Floats
    """[E, S], spectral codes of the experts."""
    beta: Floats
    """[E], the logit at the mean: what is left when all points are zero."""
    residual: Floats
    """[E], 2-norm of the gate row that the geometry leaves out; bounds |logit - approximation| / |x - mean|."""
    spread: Floats
    """[E], standard deviation of logit - approximation on the fit split, at least 0.

    Candidates are ordered by approximation + spread: an expert the geometry knows less well is kept longer. A softmax
    denominator is completed with approximation + spread^2 / 2, the mean of a log-normal.
    """
    common: Floats | None = None
    """[D], the mean gate row removed by centring; adds the same number to all logits of a token."""

    @property
    def levels(self) -> int:
        """L."""
        return int(self.centres.shape[0])

    @property
    def experts(self) -> int:
        """E."""
        return int(self.centres.shape[1])

    @property
    def colours(self) -> int:
        """S."""
        return int(self.colour.shape[1])

    @property
    def rank(self) -> int:
        """R = 3L + S."""
        return 3 * self.levels + self.colours


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Bvh:
    """A binary bounding volume hierarchy over the experts; node 0 is the root, children are adjacent.

    An inner node has `count == 0` and children `first`, `first + 1`; a leaf holds
    `experts[first : first + count]`. A child's index is always larger than its parent's.
    """

    lower: Floats
    """[N, R], per-node minimum over its experts of (centres level by level, then colour)."""
    upper: Floats
    """[N, R], the maximum."""
    power: Floats
    """[N, L], per-node maximum of |centre|^2, level 1 with beta added: the largest squared radius."""
    beta: Floats
    """[N], per-node maximum of beta."""
    choice_bias: Floats
    """[N], per-node maximum of the gate's choice bias (zeros where the rule has none)."""
    first: Ints
    """[N]."""
    count: Ints
    """[N]."""
    experts: Ints
    """[E], the permutation of expert ids that leaves index."""

    @property
    def nodes(self) -> int:
        """N."""
        return int(self.first.shape[0])


def directions(geometry: Geometry) -> Floats:
    """Linear coefficients float32 [E, R] of the points and the colour: `2 centres` level by level, then `colour`."""
    points = geometry.centres.transpose(1, 0, 2).reshape(geometry.experts, -1)
    return np.ascontiguousarray(np.concatenate([2.0 * points, geometry.colour], axis=1), dtype=np.float32)


def split_directions(linear: NDArray[Any], levels: int) -> tuple[Floats, Floats]:
    """Centres float32 [L, E, 3] and colour float32 [E, S] of linear coefficients [E, R]: the way back of `directions`."""
    points = linear[:, : 3 * levels].reshape(len(linear), levels, 3)
    centres = np.ascontiguousarray(points.transpose(1, 0, 2) / 2, dtype=np.float32)
    return centres, np.ascontiguousarray(linear[:, 3 * levels :], dtype=np.float32)


def left_out(
    weight: NDArray[Any], linear: NDArray[Any], projection: NDArray[Any], common: NDArray[Any] | None
) -> NDArray[np.float64]:
    """Float64 [E, D], gate rows less their approximation; the norms of its rows are `Geometry.residual`.

    Args:
        weight: [E, D].
        linear: [E, R], see `directions`.
        projection: [R, D].
        common: [D] of a centred gate.
    """
    approximate = linear.astype(np.float64) @ projection.astype(np.float64)
    if common is not None:
        approximate = approximate + common
    return np.asarray(weight - approximate)


def widened(geometry: Geometry) -> Geometry:
    """The geometry whose beta has the spread added: what orders candidates, and what spheres and BVH are made of."""
    return replace(geometry, beta=geometry.beta + geometry.spread)


def sphere_radii(geometry: Geometry) -> Floats:
    """Radii float32 [L, E]: `r^2 = |c|^2 (+ beta on level 1) + const`, const making the smallest r^2 zero.

    Beta is that of the candidates' order, the spread included. With these, `r_e^2 - |p - c_e|^2` ranks experts
    exactly as the linear score does (power diagram).
    """
    squared = (geometry.centres.astype(np.float64) ** 2).sum(axis=-1)
    squared[0] += widened(geometry).beta
    return np.asarray(np.sqrt(squared - squared.min(axis=1, keepdims=True)), dtype=np.float32)
