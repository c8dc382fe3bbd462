"""The geometric scores of one layer in torch: a plain module-free value that follows the hidden states' device."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from spectral_runtime.geometry import Geometry, directions


@dataclass(slots=True)
class Scorer:
    """Float32 tensors of a geometry: `scores = (x - mean) P^T A^T + (x - mean) common + beta`."""

    mean: torch.Tensor
    """[D]."""
    projection: torch.Tensor
    """[R', D]; with a centred gate the last row is the mean gate row."""
    directions: torch.Tensor
    """[E, R']; ones in the last column with a centred gate."""
    beta: torch.Tensor
    """[E]."""
    residual: torch.Tensor
    """[E], norms of what the geometry leaves out of each gate row."""
    spread: torch.Tensor
    """[E], standard deviations of logit - score."""

    @classmethod
    def of(cls, geometry: Geometry, device: torch.device | str = "cpu") -> Scorer:
        """The scorer of a geometry, on a device."""
        projection, linear = geometry.projection, directions(geometry)
        if geometry.common is not None:
            projection = np.concatenate([projection, geometry.common[None]])
            linear = np.concatenate([linear, np.ones((geometry.experts, 1), np.float32)], axis=1)
        arrays = (geometry.mean, projection, linear, geometry.beta, geometry.residual, geometry.spread)
        return cls(*(torch.tensor(array, device=device) for array in arrays))

    def to(self, device: torch.device) -> Scorer:
        """This scorer on `device`; itself when it is already there."""
        if self.mean.device == device:
            return self
        tensors = (self.mean, self.projection, self.directions, self.beta, self.residual, self.spread)
        return Scorer(*(tensor.to(device) for tensor in tensors))

    def scores(self, hidden: torch.Tensor) -> torch.Tensor:
        """Approximate logits float32 [T, E] of hidden [T, D] in any floating dtype."""
        points = (hidden.float() - self.mean) @ self.projection.T
        return torch.addmm(self.beta, points, self.directions.T)

    def margins(self, hidden: torch.Tensor) -> torch.Tensor:
        """Bounds float32 [T, E] on |logit - score| (Cauchy-Schwarz on what the geometry leaves out)."""
        return torch.outer((hidden.float() - self.mean).norm(dim=1), self.residual)
