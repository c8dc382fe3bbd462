"""Training text: the fit documents as one stream of tokens, windows at random places, some held back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from spectral_runtime.errors import TextError

HELD_BACK = 0.1
"""At most this share of the stream is held back for validation."""


@dataclass(frozen=True, slots=True)
class FitText:
    """Tokens to heal on, on the training device."""

    tokens: torch.Tensor
    """int64 [M], the documents one after the other."""
    starts: NDArray[np.int64]
    """[runs], where the stretches begin from which windows are drawn."""
    ends: NDArray[np.int64]
    """[runs]."""
    held_back: torch.Tensor
    """int64 [V, N], validation windows; no training window touches them."""

    def draw(self, length: int, count: int, seed: Sequence[int]) -> torch.Tensor:
        """Windows int64 [count, length] at places drawn uniformly; a pure function of the seed."""
        places = np.maximum(self.ends - self.starts - length + 1, 0)
        ordered = np.cumsum(places)
        drawn = np.random.default_rng(list(seed)).integers(ordered[-1], size=count)
        run = np.searchsorted(ordered, drawn, side="right")
        first = self.starts[run] + drawn - (ordered[run] - places[run])
        rows = torch.from_numpy(first).to(self.tokens.device, non_blocking=True)
        return self.tokens[rows[:, None] + torch.arange(length, device=self.tokens.device)]


def fit_text(
    documents: Sequence[Sequence[int]],
    *,
    separator: int | None,
    length: int,
    validation_tokens: int,
    seed: int,
    device: str,
) -> FitText:
    """Joins tokenised documents, and holds back windows spread evenly over them.

    Args:
        documents: token ids.
        separator: the end-of-text token put between documents, if the tokenizer has one.
        length: N, of a training window.
        validation_tokens: how many to hold back, at most a tenth of the text and at least one window.
        seed: where the first held-back window lies.
        device: where the tokens go.

    Raises:
        TextError: fewer tokens than three windows.
    """
    glue = [] if separator is None else [separator]
    joined = np.array([token for ids in documents for token in (*ids, *glue)], dtype=np.int64)
    if len(joined) < 3 * length:
        remedy = "give more calibration text, or a smaller --sequence-length"
        expected = f"{3 * length} tokens of fit documents for windows of {length}"
        raise TextError("heal", expected=expected, found=str(len(joined)), remedy=remedy)
    wanted = min(validation_tokens, int(HELD_BACK * len(joined)))
    count = max(1, wanted // length)
    gap = len(joined) // count
    offset = int(np.random.default_rng(seed).integers(gap - length + 1))
    firsts = offset + gap * np.arange(count)
    ends = np.append(firsts, len(joined))
    starts = np.append(0, firsts + length)
    usable = ends - starts >= length
    held = joined[firsts[:, None] + np.arange(length)]
    stream, held_back = (torch.from_numpy(x).to(device) for x in (joined, held))
    return FitText(stream, starts[usable], ends[usable], held_back)
