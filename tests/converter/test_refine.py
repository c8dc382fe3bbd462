"""Refinement: less missed weight than the closed form on tokens it has not seen, sound bounds, the same again for a seed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from spectral_convert.captured import LayerCapture, Moments
from spectral_convert.certify import certify_layer, certify_margin, margin_curve, risk_curve
from spectral_convert.fit import Aim, fit_layer, refine_fit
from spectral_convert.risk import MarginCurve, RiskCurve
from spectral_runtime.attaching.candidates import candidate_mask, order_scores
from spectral_runtime.attaching.contract import STANDARD
from spectral_runtime.attaching.discovery import RouterSite
from spectral_runtime.attaching.scorer import Scorer
from spectral_runtime.bundle.manifest import Split
from spectral_runtime.gate import GateRule
from spectral_runtime.geometry import Geometry

World = tuple[RouterSite, GateRule, Geometry, torch.Tensor, torch.Tensor]
HIDDEN, TOKENS = 24, 16_000
SPLIT = Split(documents=5, tokens=TOKENS, sha256="0" * 64)
RULES = {
    "softmax": GateRule(experts=32, top_k=4),
    "normalised": GateRule(experts=32, top_k=4, normalise=True),
    "groups": GateRule(
        experts=32, top_k=4, score="sigmoid", choice_bias=True, groups=4, groups_kept=2, normalise=True
    ),
    "one": GateRule(experts=32, top_k=1, score="sigmoid"),
}


def site_of(rule: GateRule, rng: np.random.Generator) -> RouterSite:
    holder = nn.Module()
    weight = rng.standard_normal((rule.experts, HIDDEN)) * np.geomspace(1.0, 0.2, HIDDEN)
    holder.weight = nn.Parameter(torch.tensor(weight, dtype=torch.float32), requires_grad=False)
    holder.bias = torch.tensor(0.05 * rng.standard_normal(rule.experts), dtype=torch.float32)
    return RouterSite(
        path="gate", module=holder, block=holder, contract=STANDARD, logits_index=0,
        weight_at=(holder, "weight"), bias_at=None,
        choice_bias_at=(holder, "bias") if rule.choice_bias else None,
    )  # fmt: skip


def clustered(rng: np.random.Generator) -> torch.Tensor:
    """Hidden states of a few topics: what a linear fit of all logits serves badly."""
    centres = rng.standard_normal((12, HIDDEN)) * 1.5
    states = centres[rng.integers(0, 12, 2 * TOKENS)] + 0.7 * rng.standard_normal((2 * TOKENS, HIDDEN))
    return torch.tensor(states, dtype=torch.float32)


def closed_form(site: RouterSite, rule: GateRule, hidden: torch.Tensor) -> Geometry:
    moments = Moments.zero(HIDDEN, rule.experts)
    logits = (hidden @ site.weight.T).double()
    moments.tokens, moments.hidden = len(hidden), hidden.double().sum(dim=0).numpy()
    moments.logits, moments.products = logits.sum(dim=0).numpy(), (logits.T @ logits).numpy()
    capture = LayerCapture(site, moments, hidden, hidden)
    return fit_layer(capture, rule, levels=2, colour=2).geometry


@pytest.fixture(params=list(RULES))
def world(request: pytest.FixtureRequest, rng: np.random.Generator) -> World:
    rule = RULES[request.param]
    site, hidden = site_of(rule, rng), clustered(rng)
    fit, unseen = hidden[:TOKENS], hidden[TOKENS:]
    return site, rule, closed_form(site, rule, fit), fit, unseen


def test_less_weight_is_missed_on_unseen_tokens(
    world: World,
) -> None:
    site, rule, closed, fit, unseen = world
    refined = refine_fit(site, rule, closed, fit, Aim(8, adaptive=False, seed=0))
    before, after = (risk_curve(site, rule, geometry, unseen).missed[8] for geometry in (closed, refined))
    assert after < 0.9 * before


def test_adaptive_sets_beat_fixed_ones_of_the_same_mean_size(
    world: World,
) -> None:
    site, rule, closed, fit, unseen = world
    if rule.top_k == 1:
        pytest.skip("the best of saturated sigmoids is no anchor; the converter then keeps sets of one size")
    refined = refine_fit(site, rule, closed, fit, Aim(8, adaptive=True, seed=0))
    fixed = refine_fit(site, rule, closed, fit, Aim(8, adaptive=False, seed=0))
    curve = risk_curve(site, rule, refined, unseen)
    margins = margin_curve(site, rule, refined, unseen, curve)
    adaptive = np.interp(8.0, margins.sizes, margins.missed)
    assert adaptive < risk_curve(site, rule, fixed, unseen).missed[8]


def test_residuals_still_bound_the_error(
    world: World,
) -> None:
    site, rule, closed, fit, unseen = world
    refined = refine_fit(site, rule, closed, fit, Aim(8, adaptive=False, seed=0))
    scorer = Scorer.of(refined)
    error = (unseen @ site.weight.T - scorer.scores(unseen)).abs()
    assert (error <= scorer.margins(unseen) + 1e-4).all()
    assert (refined.spread >= 0).all()


def test_the_same_seed_gives_the_same_arrays(
    world: World,
) -> None:
    site, rule, closed, fit, _ = world
    first, again, other = (
        refine_fit(site, rule, closed, fit, Aim(None, adaptive=False, seed=seed)) for seed in (3, 3, 4)
    )
    assert np.array_equal(first.projection, again.projection)
    assert np.array_equal(first.spread, again.spread)
    assert not np.array_equal(first.projection, other.projection)


def test_too_few_tokens_leave_the_closed_form(
    world: World,
) -> None:
    site, rule, closed, fit, _ = world
    for few in (fit[:0], fit[:5]):
        assert refine_fit(site, rule, closed, few, Aim(8, adaptive=False, seed=0)) is closed


def test_margin_curve_counts_what_a_mask_keeps(
    world: World,
) -> None:
    site, rule, closed, _, unseen = world
    curve = margin_curve(site, rule, closed, unseen, risk_curve(site, rule, closed, unseen))
    scorer = Scorer.of(closed)
    order = order_scores(rule, scorer.scores(unseen) + scorer.spread, site.choice_bias)
    for at in (100, 500):
        mask = candidate_mask(rule, order, curve.cap, float(curve.margins[at]))
        assert float(mask.sum(dim=1).double().mean()) == pytest.approx(curve.sizes[at], abs=0.01)
        assert mask.sum(dim=1).max() <= curve.cap
    fixed = certify_layer(risk_curve(site, rule, closed, unseen), SPLIT, alpha=0.02, top_k=rule.top_k)
    certificate = certify_margin(curve, SPLIT, fixed)
    assert certificate.risk <= certificate.bound <= 0.02
    if certificate.mean_candidates is not None:
        assert rule.top_k <= certificate.mean_candidates < fixed.candidates
        assert certificate.candidates == curve.cap


def test_sets_of_one_size_stay_where_margins_gain_nothing() -> None:
    rising = np.linspace(0.0, 1.0, 4)
    one_size = RiskCurve(np.array([1.0, 0.5, 0.1, 0.004, 0.0]), np.zeros(5), 1000)
    fixed = certify_layer(one_size, SPLIT, alpha=0.01, top_k=1)
    for missed, sizes in (
        (np.full(4, 0.02), rising * 8),
        (rising[::-1] * 0.02, np.array([1.0, 2.0, 3.0, 4.0])),
    ):
        assert certify_margin(MarginCurve(rising, missed, sizes, cap=8, tokens=1000), SPLIT, fixed) is fixed
    smaller = MarginCurve(rising, rising[::-1] * 0.02, np.array([1.0, 1.5, 2.5, 4.0]), cap=8, tokens=1000)
    assert certify_margin(smaller, SPLIT, fixed).mean_candidates == 2.5
