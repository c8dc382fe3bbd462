"""Planted layers for benchmarks: a gate of exact rank R, its geometry, and hidden states whose points look alike."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from spectral_runtime.geometry import Geometry, directions

HIDDEN = 2048


@dataclass(frozen=True, slots=True)
class Planted:
    """One layer; the gate's logits are the geometric scores, so every exact arm finds the same experts."""

    geometry: Geometry
    hidden: np.ndarray
    """float32 [batches, T, D]: several, so that no branch predictor learns one by heart."""
    truth: np.ndarray
    """int [T, 8], the best eight of the first batch in float64."""

    def gate(self) -> tuple[np.ndarray, np.ndarray]:
        """Gate rows float32 [E, D] and bias [E] with these logits."""
        rows = directions(self.geometry) @ self.geometry.projection
        bias = self.geometry.beta - rows @ self.geometry.mean
        return rows, bias.astype(np.float32)


def plant(experts: int, rank: int, tokens: int, kind: str, *, batches: int = 1, seed: int = 0) -> Planted:
    """Gaussian spheres and Gaussian points of the same spread.

    Args:
        experts: E.
        rank: R, a multiple of 3.
        tokens: T.
        kind: "equal radii" (nearest centres: the best case of a k-d tree, no lift needed) or "radii" (Gaussian
            squared radii).
        batches: how many batches of tokens.
        seed: of everything.
    """
    rng = np.random.default_rng(seed)
    levels = rank // 3
    centres = rng.standard_normal((levels, experts, 3), dtype=np.float32)
    squared = (centres.astype(np.float64) ** 2).sum(axis=(0, 2))
    radii = rng.standard_normal(experts) if kind == "radii" else np.zeros(experts)
    geometry = Geometry(
        mean=rng.standard_normal(HIDDEN, dtype=np.float32),
        projection=np.linalg.qr(rng.standard_normal((HIDDEN, rank)))[0].T.astype(np.float32).copy(),
        centres=centres,
        colour=np.zeros((experts, 0), dtype=np.float32),
        beta=(radii - squared).astype(np.float32),
        residual=np.zeros(experts, dtype=np.float32),
        spread=np.zeros(experts, dtype=np.float32),
    )
    hidden = geometry.mean + rng.standard_normal((batches, tokens, HIDDEN), dtype=np.float32)
    return Planted(geometry, hidden, _truth(geometry, hidden[0]))


def _truth(geometry: Geometry, hidden: np.ndarray) -> np.ndarray:
    points = (hidden.astype(np.float64) - geometry.mean) @ geometry.projection.T.astype(np.float64)
    scores = points @ directions(geometry).T.astype(np.float64) + geometry.beta
    count = min(8, geometry.experts)
    best = np.argpartition(-scores, count - 1, axis=1)[:, :count]
    return np.sort(best, axis=1)


def lifted(geometry: Geometry) -> np.ndarray:
    """Centres [E, R] or [E, R + 1] whose nearest neighbours of (p, 0) are the best experts of p.

    score = |p|^2 + r^2 - |p - c|^2 with r^2 = |c|^2 + beta, so sqrt(max r^2 - r^2) is one more coordinate.
    """
    flat = geometry.centres.transpose(1, 0, 2).reshape(geometry.experts, -1).astype(np.float64)
    squared = (flat**2).sum(axis=1) + geometry.beta
    extra = np.sqrt(squared.max() - squared)
    return flat if extra.max() < 1e-2 else np.column_stack([flat, extra])


def recall(ids: np.ndarray, truth: np.ndarray) -> float:
    """Mean share of the true best that `ids` [T, k] names."""
    hits = [len(set(row) & set(best)) for row, best in zip(ids.tolist(), truth.tolist(), strict=True)]
    return float(np.mean(hits)) / truth.shape[1]
