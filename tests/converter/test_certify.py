"""Conformal candidate counts: smallest, finite-sample honest, and refused where the text is too short."""

from __future__ import annotations

import numpy as np
import pytest

from spectral_convert.certify import certify_layer, require_disjoint
from spectral_convert.risk import RiskCurve
from spectral_runtime.bundle.manifest import Split
from spectral_runtime.errors import ConfigError, TextError

SPLIT = Split(documents=5, tokens=1000, sha256="0" * 64)


def curve(missed: list[float], tokens: int = 1000) -> RiskCurve:
    values = np.array(missed)
    return RiskCurve(values, values, tokens)


def test_the_smallest_count_that_meets_the_bound() -> None:
    certificate = certify_layer(curve([1, 0.5, 0.02, 0.008, 0.0]), SPLIT, alpha=0.01, top_k=1)
    assert certificate.candidates == 3
    assert certificate.bound == pytest.approx((1000 * 0.008 + 1) / 1001)
    assert certificate.bound <= 0.01


def test_the_correction_counts() -> None:
    """A risk just under alpha on few tokens is not under it once corrected."""
    few = certify_layer(curve([1, 0.0099, 0.0], tokens=120), SPLIT, alpha=0.01, top_k=1)
    many = certify_layer(curve([1, 0.0099, 0.0], tokens=100_000), SPLIT, alpha=0.01, top_k=1)
    assert (few.candidates, many.candidates) == (2, 1)


def test_never_fewer_than_the_gate_chooses() -> None:
    assert certify_layer(curve([0.0, 0.0, 0.0, 0.0]), SPLIT, alpha=0.5, top_k=2).candidates == 2


def test_too_few_tokens_are_refused() -> None:
    with pytest.raises(
        TextError, match=r"certify split: expected 99 tokens for alpha 0.01, found 98 — give more"
    ):
        certify_layer(curve([1, 0], tokens=98), SPLIT, alpha=0.01, top_k=1)


def test_a_certificate_about_its_own_text_is_refused() -> None:
    with pytest.raises(ConfigError, match="expected documents the fit has not seen"):
        require_disjoint(SPLIT, SPLIT)


def test_the_promise_holds_on_fresh_draws(rng: np.random.Generator) -> None:
    """Exchangeable losses: over many splits the mean loss at the certified count stays under alpha."""
    alpha, losses = 0.05, []
    for _ in range(200):
        ranks = rng.geometric(0.3, size=(2, 400))
        missed = [float((ranks[0] > count).mean()) for count in range(40)]
        count = certify_layer(curve(missed, tokens=400), SPLIT, alpha=alpha, top_k=1).candidates
        losses.append((ranks[1] > count).mean())
    assert np.mean(losses) <= alpha + 3 * np.std(losses) / np.sqrt(len(losses))
