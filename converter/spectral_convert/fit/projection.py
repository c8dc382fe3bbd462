"""The data-aware truncated SVD of a gate: which directions of the logits matter on real text."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Doubles = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class GateMoments:
    """Float64 statistics of one gate on the fit split."""

    weight: Doubles
    """[E, D], the gate's rows."""
    bias: Doubles
    """[E], zeros where the gate has none."""
    hidden_mean: Doubles
    """[D], mu."""
    covariance: Doubles
    """[E, E], of the logits: W S W^T with S the covariance of the inputs."""


@dataclass(frozen=True, slots=True)
class Projection:
    """The best rank-R view of the (possibly centred) gate in the least-squares sense."""

    rows: Doubles
    """[R, D]: points = rows @ (x - mu), most informative first."""
    linear: Doubles
    """[E, R]: logits - logits(mu) ~ linear @ points."""
    common: Doubles | None
    """[D], the mean gate row when the gate was centred."""
    variance: Doubles
    """[E], eigenvalues of the logit covariance, descending."""
    spread: Doubles
    """[E], standard deviation of what the projection leaves out of each logit."""


def project_gate(moments: GateMoments, rank: int, *, centre: bool) -> Projection:
    """Eigenvectors V of the logit covariance give `rows = V^T W`, `linear = V` (Eckart-Young in the data's metric).

    Args:
        moments: of the fit split.
        rank: R; rows beyond the number of experts are zero.
        centre: remove the mean over experts first, where the rule does not see it.
    """
    weight, covariance, common = moments.weight, moments.covariance, None
    if centre:
        common = weight.mean(axis=0)
        weight = weight - common
        covariance = (
            covariance - covariance.mean(axis=0) - covariance.mean(axis=1)[:, None] + covariance.mean()
        )
    values, vectors = np.linalg.eigh(covariance)
    values, vectors = np.maximum(values[::-1], 0.0), _fixed_signs(vectors[:, ::-1])
    kept = min(rank, len(values))
    linear = np.zeros((len(values), rank))
    linear[:, :kept] = vectors[:, :kept]
    left_out = np.sqrt((vectors[:, kept:] ** 2) @ values[kept:])
    rows, linear = _balance(linear.T @ weight, linear, values[:kept])
    return Projection(rows, linear, common, values, left_out)


def _fixed_signs(vectors: Doubles) -> Doubles:
    """Eigenvectors have no sign of their own: make the largest entry positive, so that every machine agrees."""
    largest = np.abs(vectors).argmax(axis=0)
    return vectors * np.where(vectors[largest, np.arange(vectors.shape[1])] < 0, -1.0, 1.0)


def _balance(rows: Doubles, linear: Doubles, variance: Doubles) -> tuple[Doubles, Doubles]:
    """Scales each axis so that tokens and sphere centres (half of `linear`) spread alike; scores do not change."""
    spread = np.sqrt(variance)
    reach = np.sqrt((linear[:, : len(variance)] ** 2).mean(axis=0)) / 2
    usable = (spread > 1e-12 * max(spread.max(initial=0.0), 1e-300)) & (reach > 0)
    scale = np.ones(rows.shape[0])
    scale[: len(variance)][usable] = np.sqrt(reach[usable] / spread[usable])
    return rows * scale[:, None], linear / scale


def explained_shares(variance: Doubles, levels: int, colour: int) -> tuple[float, ...]:
    """Cumulative share of logit variance after each level of three, then after the colour."""
    total = variance.sum()
    steps = [3 * level for level in range(1, levels + 1)] + ([3 * levels + colour] if colour else [])
    return tuple(float(variance[:step].sum() / total) if total > 0 else 1.0 for step in steps)
