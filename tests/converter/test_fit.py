"""The closed-form fit: optimal, centred where it may be, and true to its own residuals."""

from __future__ import annotations

import numpy as np
import pytest

from spectral_convert.fit.projection import GateMoments, explained_shares, project_gate

EXPERTS, HIDDEN, TOKENS = 12, 20, 4000


@pytest.fixture
def gate(rng: np.random.Generator) -> tuple[GateMoments, np.ndarray]:
    mixing = rng.standard_normal((HIDDEN, HIDDEN)) * np.linspace(2.0, 0.1, HIDDEN)
    hidden = rng.standard_normal((TOKENS, HIDDEN)) @ mixing + rng.standard_normal(HIDDEN)
    weight, bias = rng.standard_normal((EXPERTS, HIDDEN)), rng.standard_normal(EXPERTS)
    logits = hidden @ weight.T
    covariance = np.cov(logits.T, bias=True)
    return GateMoments(weight, bias, hidden.mean(axis=0), covariance), hidden


def residuals(moments: GateMoments, hidden: np.ndarray, rank: int, centre: bool) -> np.ndarray:
    """Logits minus approximation, [T, E], up to the constant at the mean."""
    fit = project_gate(moments, rank, centre=centre)
    moved = hidden - moments.hidden_mean
    approximate = moved @ fit.rows.T @ fit.linear.T
    if fit.common is not None:
        approximate += (moved @ fit.common)[:, None]
    return moved @ moments.weight.T - approximate


def test_no_rank_r_view_is_better(gate: tuple[GateMoments, np.ndarray]) -> None:
    moments, hidden = gate
    moved = hidden - moments.hidden_mean
    values = np.linalg.svd(moved @ moments.weight.T, compute_uv=False)
    for rank in (3, 6, 11):
        error = (residuals(moments, hidden, rank, centre=False) ** 2).sum()
        assert error == pytest.approx((values[rank:] ** 2).sum(), rel=1e-9)


def test_full_rank_leaves_nothing(gate: tuple[GateMoments, np.ndarray]) -> None:
    moments, hidden = gate
    assert np.abs(residuals(moments, hidden, EXPERTS, centre=False)).max() < 1e-9
    assert np.abs(residuals(moments, hidden, EXPERTS - 1, centre=True)).max() < 1e-9


def test_spread_is_the_deviation_of_the_residual(gate: tuple[GateMoments, np.ndarray]) -> None:
    moments, hidden = gate
    for centre in (False, True):
        spread = project_gate(moments, 3, centre=centre).spread
        assert spread == pytest.approx(residuals(moments, hidden, 3, centre).std(axis=0), rel=1e-9)


def test_more_rank_than_experts_is_padded_with_zeros(gate: tuple[GateMoments, np.ndarray]) -> None:
    fit = project_gate(gate[0], EXPERTS + 3, centre=False)
    assert fit.rows.shape == (EXPERTS + 3, HIDDEN)
    assert not fit.rows[EXPERTS:].any()
    assert np.isfinite(fit.linear).all()


def test_a_gate_that_never_moves_still_fits() -> None:
    moments = GateMoments(np.zeros((4, 3)), np.zeros(4), np.zeros(3), np.zeros((4, 4)))
    fit = project_gate(moments, 3, centre=True)
    assert np.isfinite(fit.rows).all()
    assert explained_shares(fit.variance, 1, 0) == (1.0,)


def test_explained_shares_rise_to_one(gate: tuple[GateMoments, np.ndarray]) -> None:
    fit = project_gate(gate[0], EXPERTS, centre=False)
    shares = explained_shares(fit.variance, 3, 3)
    assert list(shares) == sorted(shares)
    assert shares[-1] == pytest.approx(1.0)
