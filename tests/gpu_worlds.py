"""Manufactured geometries for the GPU tests, and the comparison that allows for rounding at the boundary."""

from __future__ import annotations

import numpy as np
import pytest

from spectral_runtime import backends, reference
from spectral_runtime.gate import GateRule
from spectral_runtime.geometry import Floats, Geometry, Ints

TOLERANCE = 2e-5
"""Relative to the largest |score| or sum of |terms| of the token: float32 sums of D and R terms in another order."""


def require(name: str) -> None:
    """Skips with the back-end's own reason."""
    reason = backends.unavailable(name)
    if reason is not None:
        pytest.skip(f"{name}: {reason}")


def make_geometry(
    rng: np.random.Generator,
    experts: int,
    *,
    hidden: int = 64,
    levels: int = 1,
    colours: int = 0,
    scale: float = 1.0,
    common: bool = False,
) -> Geometry:
    """Random spheres in `levels` spaces of three dimensions, and colours; `common`: what a token adds to all."""
    rank = 3 * levels + colours

    def normal(*shape: int) -> Floats:
        return rng.standard_normal(shape).astype(np.float32)

    return Geometry(
        mean=normal(hidden) * np.float32(0.1),
        projection=normal(rank, hidden) / np.float32(np.sqrt(hidden)),
        centres=normal(levels, experts, 3) * np.float32(scale),
        colour=normal(experts, colours) * np.float32(scale),
        beta=normal(experts) * np.float32(0.3 * scale),
        residual=np.abs(normal(experts)),
        spread=np.abs(normal(experts)) * np.float32(0.1),
        common=normal(hidden) / np.float32(np.sqrt(hidden)) if common else None,
    )


def assert_same_candidates(
    geometry: Geometry,
    rule: GateRule,
    hidden: Floats,
    found: tuple[Ints, Floats],
    choice_bias: Floats | None = None,
) -> None:
    """Every returned expert scores, in float64, at least the C-th best score less the tolerance; none twice."""
    ids, scores = found
    points = (hidden.astype(np.float64) - geometry.mean) @ geometry.projection.T.astype(np.float64)
    linear = np.concatenate(
        [2.0 * geometry.centres.transpose(1, 0, 2).reshape(len(geometry.beta), -1), geometry.colour], 1
    )
    truth = reference.choice_scores(rule, (points @ linear.T + geometry.beta).astype(np.float32), choice_bias)
    best = -np.sort(-truth, axis=1)[:, : ids.shape[1]]
    own = np.take_along_axis(truth, ids.astype(np.int64), axis=1)
    size = np.abs(truth).max(axis=1, keepdims=True)
    if rule.score == "softmax":  # ranked by sums whose terms may cancel
        terms = np.abs(points) @ np.abs(linear).T + np.abs(geometry.beta)
        size = np.maximum(size, terms.max(axis=1, keepdims=True))
    slack = TOLERANCE * np.maximum(size, 1e-30)
    assert (np.abs(own - best) <= slack).all(), f"largest difference {np.abs(own - best).max()}"
    assert (np.abs(own - scores) <= slack).all(), f"scores differ by {np.abs(own - scores).max()}"
    assert (np.diff(np.sort(ids, axis=1), axis=1) > 0).all(), "an expert came back twice"


def assert_same_list(choice: Floats, found: tuple[Ints, Floats]) -> None:
    """Ids and scores are the best of choice scores [T, E], up to rounding at the boundary; none comes twice."""
    ids, scores = found
    best = reference.best(choice, ids.shape[1])[1]
    own = np.take_along_axis(choice, ids.astype(np.int64), axis=1)
    finite = np.where(np.isfinite(choice), np.abs(choice), 0.0).max(axis=1, keepdims=True)
    slack = TOLERANCE * np.maximum(finite, 1e-30)
    with np.errstate(invalid="ignore"):
        assert ((own == best) | (np.abs(own - best) <= slack)).all(), "an expert is missing"
        assert ((own == scores) | (np.abs(own - scores) <= slack)).all(), "a score is wrong"
    assert (np.diff(np.sort(ids, axis=1), axis=1) > 0).all(), "an expert came back twice"
