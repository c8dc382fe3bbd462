"""What a capture holds: streamed moments of a router and the inputs kept for its certificate."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from spectral_runtime.attaching.discovery import RouterSite

SAMPLE = 131_072
"""Tokens of the fit split kept for refinement, evenly taken."""


@dataclass(slots=True)
class Moments:
    """Streaming first and second moments of one router, float64."""

    tokens: int
    hidden: NDArray[np.float64]
    """[D], sum of the inputs."""
    logits: NDArray[np.float64]
    """[E], sum of the logits."""
    products: NDArray[np.float64]
    """[E, E], sum of outer products of the logits: all that the closed form needs of the inputs' covariance."""
    chosen: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    """[E], how often the gate chose each expert."""

    @classmethod
    def zero(cls, hidden: int, experts: int) -> Moments:
        """No tokens seen yet."""
        shapes = (np.zeros(hidden), np.zeros(experts), np.zeros((experts, experts)))
        return cls(0, *shapes, np.zeros(experts, np.int64))


@dataclass(slots=True)
class LayerCapture:
    """What one router was seen doing."""

    site: RouterSite
    moments: Moments
    certify: torch.Tensor
    """[T, D], router inputs of the certify split, in the model's dtype."""
    sample: torch.Tensor
    """[T', D] bfloat16, router inputs of some of the fit split's tokens, for refinement; empty where none is asked."""
