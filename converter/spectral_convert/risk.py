"""The risk curves of a layer: what every number of candidates, or every margin, would lose."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class RiskCurve:
    """What C candidates lose, for every C, over the tokens of one split."""

    missed: NDArray[np.float64]
    """[E + 1], mean share of the chosen experts' weight outside the best C candidates; missed[0] = 1."""
    lost: NDArray[np.float64]
    """[E + 1], mean share of the K chosen experts outside the best C candidates: 1 - recall."""
    tokens: int
    gaps: tuple[float, float] = (0.0, 0.0)
    """Least and largest distance of a chosen expert below the anchor: the margins that matter lie between."""


@dataclass(frozen=True, slots=True)
class MarginCurve:
    """What adaptive candidate sets lose, for a rising list of margins, over the tokens of one split."""

    margins: NDArray[np.float64]
    """[G], rising."""
    missed: NDArray[np.float64]
    """[G], mean share of the chosen experts' weight outside the set."""
    sizes: NDArray[np.float64]
    """[G], mean number of experts in the set."""
    cap: int
    """Largest set: the C best experts take part."""
    tokens: int
