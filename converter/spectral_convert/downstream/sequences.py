"""Scores of token sequences: loss and greedy hit of every scored token, for one model as it now routes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from spectral_convert.forward import run_batches, token_losses
from spectral_convert.text import Window


@dataclass(frozen=True, slots=True)
class Scored:
    """One window's scores; entry i belongs to token i + 1, the first token is predicted by nothing."""

    losses: NDArray[np.float64]
    """[N - 1], negative log-likelihood in nats."""
    hits: NDArray[np.bool_]
    """[N - 1], whether the token was the most likely one."""


def score_sequences(model: Any, windows: Sequence[Window], label: str) -> list[Scored]:
    """The scores of every window, in order."""
    scored: list[Scored | None] = [None] * len(windows)
    for batch, logits in run_batches(model, windows, label):
        best = logits[:, :-1].argmax(dim=-1).cpu()
        losses = token_losses(batch, logits)
        for row, number in enumerate(batch.numbers):
            length = len(losses[row])
            hits = torch.eq(best[row, :length], batch.ids[row, 1 : length + 1])
            scored[number] = Scored(losses[row], hits.numpy())
    assert all(item is not None for item in scored)
    return [item for item in scored if item is not None]
