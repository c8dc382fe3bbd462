"""The U-shape question: how a quantity runs over the depth of a model, with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Shape = Literal["U", "inverted U", "rising", "falling", "neither", "too few layers"]
LEAST_LAYERS = 4


@dataclass(frozen=True, slots=True)
class DepthProfile:
    """One quantity over the layers."""

    shape: Shape
    curvature: float
    """Second-order coefficient of the least-squares parabola over depth from -1 (first) to 1 (last layer)."""
    curvature_ci95: tuple[float, float]
    slope: float
    slope_ci95: tuple[float, float]
    turning_point: float | None
    """Depth from 0 (first) to 1 (last layer) where the parabola turns, when inside."""


def depth_profile(values: Sequence[float], resampled: NDArray[np.float64]) -> DepthProfile:
    """The shape of `values` [L] over depth; `resampled` [S, L] are bootstrap values of the same layers.

    A U is claimed only when the curvature's interval excludes zero and the parabola turns inside the model.
    """
    if len(values) < LEAST_LAYERS:
        return DepthProfile("too few layers", 0.0, (0.0, 0.0), 0.0, (0.0, 0.0), None)
    curvature, slope = _parabola(np.asarray(values)[None])
    bends, slopes = _parabola(resampled)
    bend_ci, slope_ci = _interval(curvature[0], bends), _interval(slope[0], slopes)
    turn = -slope[0] / (2 * curvature[0]) if curvature[0] else np.inf
    inside = abs(turn) < 1.0
    return DepthProfile(
        shape=_shape(bend_ci, slope_ci, inside),
        curvature=float(curvature[0]),
        curvature_ci95=bend_ci,
        slope=float(slope[0]),
        slope_ci95=slope_ci,
        turning_point=float((turn + 1) / 2) if inside else None,
    )


def _parabola(values: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    depth = np.linspace(-1.0, 1.0, values.shape[1])
    design = np.stack([depth**2, depth, np.ones_like(depth)], axis=1)
    fitted = values @ np.linalg.pinv(design).T
    return fitted[:, 0], fitted[:, 1]


def _interval(value: float, resampled: NDArray[np.float64]) -> tuple[float, float]:
    low, high = np.percentile(resampled, [2.5, 97.5]) - resampled.mean()
    return float(value + low), float(value + high)


def _shape(bend: tuple[float, float], slope: tuple[float, float], inside: bool) -> Shape:
    if inside and bend[0] > 0:
        return "U"
    if inside and bend[1] < 0:
        return "inverted U"
    if slope[0] > 0:
        return "rising"
    return "falling" if slope[1] < 0 else "neither"
