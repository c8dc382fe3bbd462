"""The risk curve of a layer: what every number of candidates would lose."""

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
