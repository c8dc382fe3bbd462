"""The paired comparison and its block bootstrap."""

from __future__ import annotations

import numpy as np
import pytest

from spectral_convert.paired import BLOCK_WINDOWS, compare, window_blocks
from spectral_convert.text import Window


def windows(documents: int, each: int) -> list[Window]:
    return [Window(d, tuple(range(9))) for d in range(documents) for _ in range(each)]


def test_equal_losses_differ_by_nothing(rng: np.random.Generator) -> None:
    losses = [rng.random(8) for _ in range(12)]
    result = compare(windows(6, 2), losses, losses)
    assert result.delta_pct == 0.0
    assert result.ci95 == (0.0, 0.0)
    assert result.tokens == 96


def test_a_constant_gap_is_found_exactly(rng: np.random.Generator) -> None:
    base = [rng.random(8) for _ in range(12)]
    result = compare(windows(6, 2), base, [x + np.log(1.1) for x in base])
    assert result.delta_pct == pytest.approx(10.0)
    assert result.ci95 == pytest.approx((10.0, 10.0))
    assert result.ppl / result.ppl_base == pytest.approx(1.1)


def test_long_documents_are_cut_into_blocks() -> None:
    blocks = window_blocks([*windows(1, 2 * BLOCK_WINDOWS + 1), Window(1, (1, 2))])
    assert blocks.tolist() == [0] * BLOCK_WINDOWS + [1] * BLOCK_WINDOWS + [2, 3]


def test_the_interval_covers_the_truth(rng: np.random.Generator) -> None:
    """Documents differ by chance around a gap of zero: 95 % of intervals must contain it, within sampling error."""
    inside = 0
    for trial in range(100):
        base = [np.zeros(8) for _ in range(40)]
        moved = [np.full(8, shift) for shift in rng.normal(0, 0.01, 40)]
        low, high = compare(windows(40, 1), base, moved, seed=trial).ci95
        inside += low <= 0.0 <= high
    assert 86 <= inside <= 100
