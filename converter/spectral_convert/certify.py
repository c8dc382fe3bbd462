"""Certify: the smallest number of candidates whose missed expert weight is bounded, on documents never fitted."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray

from spectral_convert.risk import RiskCurve
from spectral_runtime.attaching.discovery import RouterSite
from spectral_runtime.attaching.scorer import Scorer
from spectral_runtime.attaching.selection import choice_scores, expert_scores, gate_logits, select_experts
from spectral_runtime.bundle.manifest import Certificate, Split
from spectral_runtime.errors import ConfigError, TextError
from spectral_runtime.gate import GateRule
from spectral_runtime.geometry import Geometry

CHUNK = 4096
"""Tokens scored at a time."""


def risk_curve(site: RouterSite, rule: GateRule, geometry: Geometry, hidden: torch.Tensor) -> RiskCurve:
    """Missed weight and lost experts for every C from 0 to E; hidden [T, D] in the model's dtype."""
    device = site.weight.device
    scorer = Scorer.of(geometry, device)
    mass = np.zeros(rule.experts)
    count = np.zeros(rule.experts)
    with torch.inference_mode():
        for chunk in torch.split(hidden, CHUNK):
            ranks, weights = _true_ranks(site, rule, scorer, chunk.to(device))
            mass += np.bincount(ranks.ravel(), weights.ravel(), minlength=rule.experts)
            count += np.bincount(ranks.ravel(), minlength=rule.experts)
    tokens = len(hidden)
    missed = 1.0 - np.concatenate([[0.0], np.cumsum(mass)]) / tokens
    lost = 1.0 - np.concatenate([[0.0], np.cumsum(count)]) / (tokens * rule.top_k)
    return RiskCurve(np.clip(missed, 0.0, 1.0), np.clip(lost, 0.0, 1.0), tokens)


def _true_ranks(
    site: RouterSite, rule: GateRule, scorer: Scorer, hidden: torch.Tensor
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Where the gate's own K experts stand in the geometric order, and their shares of the weight; [T, K] both."""
    exact = gate_logits(rule, hidden, site.weight, site.bias)
    ids, weights = select_experts(rule, exact, site.choice_bias)
    choice = choice_scores(expert_scores(rule, scorer.scores(hidden) + scorer.spread), site.choice_bias)
    order = choice.argsort(dim=1, descending=True, stable=True)
    places = torch.arange(rule.experts, device=order.device).expand_as(order)
    ranks = torch.empty_like(order).scatter_(1, order, places)
    weights = weights.double()
    shares = weights / weights.sum(dim=1, keepdim=True).clamp(min=1e-30)
    return ranks.gather(1, ids).cpu().numpy(), shares.cpu().numpy()


def certify_layer(curve: RiskCurve, split: Split, *, alpha: float, top_k: int) -> Certificate:
    """The smallest C with `(n risk(C) + 1) / (n + 1) <= alpha` (conformal risk control, Angelopoulos et al. 2022).

    The promise is about the mean over tokens drawn like those of the split.

    Raises:
        TextError: when the split has fewer tokens than alpha needs.
    """
    needed = math.ceil(1.0 / alpha) - 1
    if curve.tokens < needed:
        remedy = "give more calibration text, or a larger --alpha"
        raise TextError(
            "certify split",
            expected=f"{needed} tokens for alpha {alpha}",
            found=str(curve.tokens),
            remedy=remedy,
        )
    bounds = (curve.tokens * curve.missed + 1.0) / (curve.tokens + 1.0)
    fitting = np.flatnonzero(bounds <= alpha + 1e-12)
    count = max(int(fitting[0]), top_k)
    return Certificate(
        alpha=alpha,
        candidates=count,
        risk=float(curve.missed[count]),
        bound=float(bounds[count]),
        tokens=curve.tokens,
        documents=split.documents,
        split_sha256=split.sha256,
    )


def require_disjoint(fit: Split, certify: Split) -> None:
    """Raises ConfigError when a certificate would speak about its own fitting text."""
    if fit.sha256 == certify.sha256:
        raise ConfigError("certify split", expected="documents the fit has not seen", found="the fit's own")
