"""Certify: the smallest number of candidates whose missed expert weight is bounded, on documents never fitted."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from spectral_convert.risk import MarginCurve, RiskCurve
from spectral_runtime.attaching.candidates import anchors, order_scores
from spectral_runtime.attaching.discovery import RouterSite
from spectral_runtime.attaching.scorer import Scorer
from spectral_runtime.attaching.selection import gate_logits, select_experts
from spectral_runtime.bundle.manifest import Certificate, Split
from spectral_runtime.errors import ConfigError, TextError
from spectral_runtime.gate import GateRule, anchor_ranks
from spectral_runtime.geometry import Geometry

CHUNK = 4096
"""Tokens scored at a time."""
ROUNDING = 1e-12
GRID = 1024
"""Margins tried, evenly between the smallest and the largest that matter."""
CAP_RISK = 1e-4
"""Adaptive sets hold no more experts than a fixed set that misses this share."""


@dataclass(slots=True)
class _Seen:
    """Where the gate's own K experts of one chunk stand in the geometric order."""

    ranks: torch.Tensor
    """int64 [T, K]."""
    gaps: torch.Tensor
    """[T, K], how far they lie below the anchor."""
    shares: torch.Tensor
    """float64 [T, K], of the weight."""
    ranked_gaps: torch.Tensor
    """[T, E], how far every expert lies below it, rising."""


def risk_curve(site: RouterSite, rule: GateRule, geometry: Geometry, hidden: torch.Tensor) -> RiskCurve:
    """Missed weight and lost experts for every C from 0 to E; hidden [T, D] in the model's dtype."""
    mass = np.zeros(rule.experts)
    count = np.zeros(rule.experts)
    lowest, highest = math.inf, -math.inf
    for seen in _chunks(site, rule, geometry, hidden):
        lowest, highest = min(lowest, float(seen.gaps.min())), max(highest, float(seen.gaps.max()))
        ranks = seen.ranks.cpu().numpy().ravel()
        mass += np.bincount(ranks, seen.shares.cpu().numpy().ravel(), minlength=rule.experts)
        count += np.bincount(ranks, minlength=rule.experts)
    tokens = len(hidden)
    missed = 1.0 - np.concatenate([[0.0], np.cumsum(mass)]) / tokens
    lost = 1.0 - np.concatenate([[0.0], np.cumsum(count)]) / (tokens * rule.top_k)
    return RiskCurve(np.clip(missed, 0.0, 1.0), np.clip(lost, 0.0, 1.0), tokens, (lowest, highest))


def margin_curve(
    site: RouterSite, rule: GateRule, geometry: Geometry, hidden: torch.Tensor, curve: RiskCurve
) -> MarginCurve:
    """Missed weight and mean set size for `GRID` margins; sets are capped where C alone would lose next to nothing."""
    small = np.flatnonzero(curve.missed <= CAP_RISK)
    least = anchor_ranks(rule, rule.experts)[1]
    cap = max(int(small[0]) if len(small) else rule.experts, least)
    lowest, highest = curve.gaps
    margins = torch.linspace(lowest, highest, GRID, device=site.weight.device)
    kept, sizes = np.zeros(GRID), np.zeros(GRID)
    for seen in _chunks(site, rule, geometry, hidden):
        shares = seen.shares.masked_fill(seen.ranks >= cap, 0.0)
        sure = seen.ranks < rule.top_k
        kept += _cumulated(margins, seen.gaps.masked_fill(sure, lowest), shares)
        gaps = seen.ranked_gaps[:, :cap].clone()
        gaps[:, : rule.top_k] = lowest
        sizes += _cumulated(margins, gaps, torch.ones_like(gaps, dtype=torch.float64))
    tokens = len(hidden)
    missed = np.clip(1.0 - kept / tokens, 0.0, 1.0)
    return MarginCurve(margins.double().cpu().numpy(), missed, sizes / tokens, cap, tokens)


def _cumulated(margins: torch.Tensor, gaps: torch.Tensor, weights: torch.Tensor) -> NDArray[np.float64]:
    """[G], the weight of all gaps that are at most each margin."""
    bins = torch.bucketize(gaps.reshape(-1), margins)
    sums = torch.bincount(bins, weights.reshape(-1), minlength=len(margins) + 1)
    return np.asarray(sums.cumsum(0)[: len(margins)].cpu().numpy())


def _chunks(site: RouterSite, rule: GateRule, geometry: Geometry, hidden: torch.Tensor) -> Iterator[_Seen]:
    device = site.weight.device
    scorer = Scorer.of(geometry, device)
    for chunk in torch.split(hidden, CHUNK):
        with torch.inference_mode():
            # A copy: the last bits of a product depend on how its operands lie in memory, here or in a file.
            seen = _see(site, rule, scorer, chunk.clone().to(device))
        yield seen


def _see(site: RouterSite, rule: GateRule, scorer: Scorer, hidden: torch.Tensor) -> _Seen:
    exact = gate_logits(rule, hidden, site.weight, site.bias)
    ids, weights = select_experts(rule, exact, site.choice_bias)
    order = order_scores(rule, scorer.scores(hidden) + scorer.spread, site.choice_bias)
    ranked, places = order.sort(dim=1, descending=True, stable=True)
    ranks = torch.empty_like(places).scatter_(
        1, places, torch.arange(rule.experts, device=places.device).expand_as(places)
    )
    ranked_gaps = anchors(rule, ranked) - ranked
    ranks, weights = ranks.gather(1, ids), weights.double()
    shares = weights / weights.sum(dim=1, keepdim=True).clamp(min=1e-30)
    return _Seen(ranks, ranked_gaps.gather(1, ranks), shares, ranked_gaps)


def certify(
    curve: RiskCurve, margins: MarginCurve, split: Split, *, alpha: float, top_k: int, adaptive: bool
) -> Certificate:
    """The certificate of a layer: of one number of candidates, or of a margin where that is asked and gains.

    Raises:
        TextError: when the split has fewer tokens than alpha needs.
    """
    fixed = certify_layer(curve, split, alpha=alpha, top_k=top_k)
    return certify_margin(margins, split, fixed) if adaptive else fixed


def certify_layer(curve: RiskCurve, split: Split, *, alpha: float, top_k: int) -> Certificate:
    """The smallest C with `(n risk(C) + 1) / (n + 1) <= alpha` (conformal risk control, Angelopoulos et al. 2022).

    The promise is about the mean over tokens drawn like those of the split.

    Raises:
        TextError: when the split has fewer tokens than alpha needs.
    """
    _require_tokens(curve.tokens, alpha)
    bounds = _bounds(curve.missed, curve.tokens)
    count = max(int(np.flatnonzero(bounds <= alpha + ROUNDING)[0]), top_k)
    return Certificate(
        alpha=alpha,
        candidates=count,
        risk=float(curve.missed[count]),
        bound=float(bounds[count]),
        tokens=curve.tokens,
        documents=split.documents,
        split_sha256=split.sha256,
    )


def certify_margin(curve: MarginCurve, split: Split, fixed: Certificate) -> Certificate:
    """The same for adaptive sets: the smallest margin that meets alpha; `fixed`, where sets of one size are no larger."""
    bounds = _bounds(curve.missed, curve.tokens)
    fitting = np.flatnonzero(bounds <= fixed.alpha + ROUNDING)
    if not len(fitting) or curve.sizes[fitting[0]] >= fixed.candidates:
        return fixed
    at = int(fitting[0])
    return Certificate(
        alpha=fixed.alpha,
        candidates=curve.cap,
        risk=float(curve.missed[at]),
        bound=float(bounds[at]),
        tokens=curve.tokens,
        documents=split.documents,
        split_sha256=split.sha256,
        margin=float(curve.margins[at]),
        mean_candidates=float(curve.sizes[at]),
    )


def _bounds(missed: NDArray[np.float64], tokens: int) -> NDArray[np.float64]:
    return (tokens * missed + 1.0) / (tokens + 1.0)


def _require_tokens(tokens: int, alpha: float) -> None:
    needed = math.ceil(1.0 / alpha) - 1
    if tokens < needed:
        remedy = "give more calibration text, or a larger --alpha"
        expected = f"{needed} tokens for alpha {alpha}"
        raise TextError("certify split", expected=expected, found=str(tokens), remedy=remedy)


def require_disjoint(fit: Split, certify: Split) -> None:
    """Raises ConfigError when a certificate would speak about its own fitting text."""
    if fit.sha256 == certify.sha256:
        raise ConfigError("certify split", expected="documents the fit has not seen", found="the fit's own")
