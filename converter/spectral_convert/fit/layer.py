"""Fits one layer: from what its router was seen doing to the geometry that replaces or pre-filters it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spectral_convert.captured import LayerCapture
from spectral_convert.fit.projection import GateMoments, Projection, explained_shares, project_gate
from spectral_runtime.errors import ModelError
from spectral_runtime.gate import GateRule
from spectral_runtime.geometry import Geometry, left_out, split_directions


@dataclass(frozen=True, slots=True)
class LayerFit:
    """The geometry of one layer, and how much of its logits' variance each level explains."""

    geometry: Geometry
    explained: tuple[float, ...]


def fit_layer(capture: LayerCapture, rule: GateRule, *, levels: int, colour: int) -> LayerFit:
    """The closed-form geometric router of one layer; deterministic.

    Args:
        capture: moments of the fit split.
        rule: decides whether the gate may be centred.
        levels: L, number of 3-D levels.
        colour: S, spectral dimensions beyond the points.

    Raises:
        ModelError: when the moments are not finite.
    """
    moments = gate_moments(capture)
    projection = project_gate(moments, 3 * levels + colour, centre=rule.shift_invariant)
    geometry = _geometry(moments, projection, levels)
    return LayerFit(geometry, explained_shares(projection.variance, levels, colour))


def gate_moments(capture: LayerCapture) -> GateMoments:
    """Means and covariance from the streamed sums."""
    seen, site = capture.moments, capture.site
    mean = seen.logits / seen.tokens
    covariance = seen.products / seen.tokens - np.outer(mean, mean)
    if not (np.isfinite(covariance).all() and np.isfinite(seen.hidden).all()):
        raise ModelError(site.path, expected="finite router statistics", found="NaN or infinity")
    weight = site.weight.detach().double().cpu().numpy()
    bias = np.zeros(len(weight)) if site.bias is None else site.bias.detach().double().cpu().numpy()
    return GateMoments(weight, bias, seen.hidden / seen.tokens, covariance)


def _geometry(moments: GateMoments, projection: Projection, levels: int) -> Geometry:
    centres, colour = split_directions(projection.linear, levels)
    remainder = left_out(moments.weight, projection.linear, projection.rows, projection.common)
    return Geometry(
        mean=_float(moments.hidden_mean),
        projection=_float(projection.rows),
        centres=centres,
        colour=colour,
        beta=_float(moments.weight @ moments.hidden_mean + moments.bias),
        residual=_float(np.linalg.norm(remainder, axis=1)),
        spread=_float(projection.spread),
        common=None if projection.common is None else _float(projection.common),
    )


def _float(values: NDArray[np.float64]) -> NDArray[np.float32]:
    return np.ascontiguousarray(values, dtype=np.float32)
