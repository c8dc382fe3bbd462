"""Paired comparison of two models' token losses: perplexities, their difference, a block-bootstrap interval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spectral_convert.text import Window

BLOCK_WINDOWS = 4
"""A document is one bootstrap block; a longer one is cut into blocks of this many windows."""
RESAMPLES = 4000


@dataclass(frozen=True, slots=True)
class PairedPerplexity:
    """The outcome of one paired comparison."""

    tokens: int
    blocks: int
    ppl_base: float
    ppl: float
    delta_pct: float
    """100 (ppl / ppl_base - 1)."""
    ci95: tuple[float, float]
    """Interval of `delta_pct`."""


def block_of(window_number: int, first_of_document: int, document: int) -> tuple[int, int]:
    """The bootstrap block of a window: its document, and which run of `BLOCK_WINDOWS` within it."""
    return document, (window_number - first_of_document) // BLOCK_WINDOWS


def window_blocks(windows: Sequence[Window]) -> NDArray[np.int64]:
    """Block number of every window."""
    first: dict[int, int] = {}
    for number, window in enumerate(windows):
        first.setdefault(window.document, number)
    keys = [block_of(n, first[w.document], w.document) for n, w in enumerate(windows)]
    numbers = {key: i for i, key in enumerate(dict.fromkeys(keys))}
    return np.array([numbers[key] for key in keys], dtype=np.int64)


def compare(
    windows: Sequence[Window],
    base: Sequence[NDArray[np.float64]],
    converted: Sequence[NDArray[np.float64]],
    *,
    seed: int = 0,
) -> PairedPerplexity:
    """Perplexities and the difference in percent with its 95 % interval (percentile bootstrap over blocks).

    Args:
        windows: the text.
        base: per window, the losses in nats of the untouched model.
        converted: the same tokens' losses of the converted model.
        seed: of the resampling.
    """
    blocks = window_blocks(windows)
    count = np.bincount(blocks, [float(len(x)) for x in base]).astype(np.float64)
    gap = np.bincount(blocks, [float((c - b).sum()) for b, c in zip(base, converted, strict=True)]).astype(
        np.float64
    )
    tokens = int(count.sum())
    mean_base = sum(float(x.sum()) for x in base) / tokens
    mean = sum(float(x.sum()) for x in converted) / tokens
    low, high = np.percentile(_resampled(gap, count, seed), [2.5, 97.5])
    return PairedPerplexity(
        tokens=tokens,
        blocks=len(count),
        ppl_base=float(np.exp(mean_base)),
        ppl=float(np.exp(mean)),
        delta_pct=float(100 * np.expm1(mean - mean_base)),
        ci95=(float(low), float(high)),
    )


def _resampled(gap: NDArray[np.float64], count: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
    rng = np.random.default_rng(seed)
    draws = rng.multinomial(len(gap), np.full(len(gap), 1.0 / len(gap)), size=RESAMPLES)
    return np.asarray(100 * np.expm1((draws @ gap) / (draws @ count)))
