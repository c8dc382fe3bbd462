"""Brute force in float64: what a router must answer, in the problem's own words."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from spectral_runtime.gate import GateRule
from spectral_runtime.geometry import Bvh, Geometry

CHOICES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "softmax": lambda z: z,
    "logits": lambda z: z,
    "sigmoid": lambda z: np.exp(-np.logaddexp(0.0, -z)),
    "sqrtsoftplus": lambda z: np.sqrt(np.logaddexp(0.0, z)),
}


def random_geometry(
    rng: np.random.Generator,
    experts: int,
    levels: int = 1,
    colours: int = 0,
    *,
    hidden: int = 40,
    spread: float = 1.0,
) -> Geometry:
    """Gaussian spheres; `spread` scales the centres, so that radii become huge or tiny."""
    draw = lambda *shape: rng.standard_normal(shape, dtype=np.float32)  # noqa: E731
    return Geometry(
        mean=draw(hidden),
        projection=draw(3 * levels + colours, hidden) / np.float32(np.sqrt(hidden)),
        centres=draw(levels, experts, 3) * np.float32(spread),
        colour=draw(experts, colours),
        beta=draw(experts),
        residual=np.ones(experts, dtype=np.float32),
        spread=np.zeros(experts, dtype=np.float32),
    )


def exact_points(geometry: Geometry, hidden: np.ndarray) -> np.ndarray:
    """Points float64 [T, R]."""
    return (hidden.astype(np.float64) - geometry.mean) @ geometry.projection.astype(np.float64).T


def exact_scores(geometry: Geometry, points: np.ndarray) -> np.ndarray:
    """sum_l 2 c_l . p_l + colour . f + beta in float64 [T, E], without the common mode."""
    out = np.tile(geometry.beta.astype(np.float64), (len(points), 1))
    for level in range(geometry.levels):
        out += 2.0 * points[:, 3 * level : 3 * level + 3] @ geometry.centres[level].astype(np.float64).T
    return out + points[:, 3 * geometry.levels :] @ geometry.colour.astype(np.float64).T


def rounding(geometry: Geometry, points: np.ndarray) -> np.ndarray:
    """What float32 may lose of a score, [T, 1]: proportional to the terms that cancel in it."""
    terms = np.abs(geometry.beta).max() + np.zeros(len(points))
    for level in range(geometry.levels):
        part = points[:, 3 * level : 3 * level + 3]
        terms += 2.0 * np.abs(part) @ np.abs(geometry.centres[level]).max(axis=0).astype(np.float64)
    terms += np.abs(points[:, 3 * geometry.levels :]) @ np.abs(geometry.colour).max(axis=0, initial=0.0)
    return (geometry.rank + 16) * 2.0**-23 * terms[:, None] + 1e-30


def exact_choice(rule: GateRule, logits: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
    """Choice scores in float64."""
    chosen = CHOICES[rule.score](logits)
    return chosen if bias is None else chosen + bias


def assert_best(
    choice: np.ndarray, ids: np.ndarray, scores: np.ndarray, tolerance: np.ndarray | float
) -> None:
    """The C best of every row: no better expert is missed, none is named twice, ties go to the smaller id.

    Args:
        choice: float64 [T, E], exact.
        ids: int32 [T, C].
        scores: float32 [T, C], the router's own.
        tolerance: float32's rounding; experts closer than that may change places.
    """
    count = ids.shape[1]
    assert ids.dtype == np.int32
    assert scores.dtype == np.float32
    assert scores.shape == ids.shape
    assert ((ids >= 0) & (ids < choice.shape[1])).all()
    assert all(len(set(row)) == count for row in ids.tolist())
    named = np.take_along_axis(choice, ids.astype(np.int64), axis=1)
    np.testing.assert_array_less(np.abs(scores - named), tolerance + 1e-6 * np.abs(named) + 1e-30)
    worst = -np.sort(-choice, axis=1)[:, count - 1 : count]
    assert (named >= worst - 2 * tolerance - 2e-6 * np.abs(worst)).all()
    assert (np.diff(scores, axis=1) <= 0).all()
    tied = np.diff(scores, axis=1) == 0
    assert (np.diff(ids, axis=1)[tied] > 0).all()


def assert_is_tree(bvh: Bvh, experts: int, leaf_size: int) -> int:
    """The invariants that `Bvh` documents; returns the depth."""
    depth = np.full(bvh.nodes, -1)
    depth[0] = 0
    covered: list[int] = []
    for node in range(bvh.nodes):
        assert depth[node] >= 0, f"node {node} has no parent"
        first, count = int(bvh.first[node]), int(bvh.count[node])
        if count:
            assert count <= leaf_size
            covered += bvh.experts[first : first + count].tolist()
            continue
        assert first > node
        assert (depth[first : first + 2] == -1).all(), "a node with two parents"
        depth[first : first + 2] = depth[node] + 1
    assert sorted(covered) == list(range(experts))
    return int(depth.max())


def assert_bounds_hold(bvh: Bvh, geometry: Geometry, bias: np.ndarray | None) -> None:
    """Every node's box, power, beta and bias are exactly those of the experts below it."""
    coordinates = np.concatenate([*geometry.centres, geometry.colour], axis=1)
    power = (geometry.centres.astype(np.float64) ** 2).sum(axis=-1).T
    power[:, 0] += geometry.beta
    below: dict[int, np.ndarray] = {}
    for node in range(bvh.nodes - 1, -1, -1):
        first, count = int(bvh.first[node]), int(bvh.count[node])
        inner = count == 0
        ids = (
            np.concatenate([below[first], below[first + 1]]) if inner else bvh.experts[first : first + count]
        )
        below[node] = ids
        np.testing.assert_array_equal(bvh.lower[node], coordinates[ids].min(axis=0))
        np.testing.assert_array_equal(bvh.upper[node], coordinates[ids].max(axis=0))
        np.testing.assert_allclose(bvh.power[node], power[ids].max(axis=0), rtol=1e-5, atol=1e-5)
        assert bvh.beta[node] == geometry.beta[ids].max()
        assert bvh.choice_bias[node] == (0.0 if bias is None else bias[ids].max())
