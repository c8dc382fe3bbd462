"""Refines a closed-form fit by gradient descent: the experts that carry weight should be among few candidates."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch.nn import functional

from spectral_runtime.attaching.candidates import anchors, order_scores
from spectral_runtime.attaching.discovery import RouterSite
from spectral_runtime.attaching.selection import gate_logits, select_experts
from spectral_runtime.gate import GateRule, anchor_ranks
from spectral_runtime.geometry import Geometry, directions, left_out, split_directions

STEPS, BATCH = 800, 2048
EPOCHS = 20
"""Most often a token is seen: small captures get fewer steps."""
RATE = 0.05
"""Adam's step, relative to the mean magnitude of each array."""
LOYALTY, LOOSE = 0.1, 0.02
"""Weight of the mean squared error of the scores as logits, in units of the closed form's, where they complete a softmax and
elsewhere. Without it they serve only text like the sample's, and no `geometric` mode."""
HELD = 8
"""One token in so many is kept for choosing the best state."""
CHECKS = 8
"""How often the held tokens are looked at."""
TARGET = 0.01
"""Where no number of candidates is asked: the one at which the closed form misses this share of weight."""


@dataclass(frozen=True, slots=True)
class Aim:
    """What the candidate sets of one layer should be."""

    candidates: int | None
    """C, or the mean size of adaptive sets; None takes what the closed form needs to miss 1 %."""
    adaptive: bool
    """Sets of their own size for every token."""
    seed: int
    """Of the batches."""

    @property
    def size(self) -> int:
        """The number of candidates, once it is known."""
        assert self.candidates is not None
        return self.candidates


@dataclass(slots=True)
class Trained:
    """The arrays that are trained; scores are `(x - mean) rows^T linear^T + beta`, without the common row.

    Beta stays what it is, the logit at the mean: residual bounds rest on it.
    """

    rows: torch.Tensor
    """[R, D]."""
    linear: torch.Tensor
    """[E, R]."""
    spread: torch.Tensor
    """[E], at least 0."""

    def arrays(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """All three."""
        return self.rows, self.linear, self.spread

    def copy(self) -> Trained:
        """The same values, detached."""
        return Trained(*(array.detach().clone() for array in self.arrays()))


class _Problem:
    """The tokens of a sample with what their gate does, and how well given arrays serve them."""

    def __init__(self, site: RouterSite, rule: GateRule, geometry: Geometry, hidden: torch.Tensor) -> None:
        self.rule, self.site, device = rule, site, site.weight.device
        self.hidden = hidden
        self.choice_bias = None if site.choice_bias is None else site.choice_bias.detach()
        self.mean = torch.tensor(geometry.mean, device=device)
        self.beta = torch.tensor(geometry.beta, device=device)
        self.error = torch.tensor(geometry.spread, device=device).square().mean().clamp(min=1e-12)
        self.common = None if geometry.common is None else torch.tensor(geometry.common, device=device)
        # The softmax of un-normalised families is completed from the scores, so these must stay logits on the whole.
        self.completes = rule.score == "softmax" and rule.weight == "score" and not rule.normalise
        self.loyalty = LOYALTY if self.completes else LOOSE

    def batch(self, which: torch.Tensor | slice) -> tuple[torch.Tensor, ...]:
        """Centred hidden [T, D], exact logits [T, E] less the common mode, ids [T, K], weight shares [T, K]."""
        hidden = self.hidden[which].to(self.mean.device)
        with torch.no_grad():
            exact = gate_logits(
                self.rule, hidden.to(self.site.weight.dtype), self.site.weight, self.site.bias
            )
            ids, weights = select_experts(self.rule, exact, self.choice_bias)
            shares = weights.float() / weights.float().sum(dim=1, keepdim=True).clamp(min=1e-30)
            centred = hidden.float() - self.mean
            exact = exact.float()
            if self.common is not None:
                exact = exact - (centred @ self.common)[:, None]
        return centred, exact, ids, shares

    def order(self, trained: Trained, centred: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Scores [T, E], and what candidates are ordered by; gates are centred only where no order sees it."""
        scores = torch.addmm(self.beta, centred @ trained.rows.T, trained.linear.T)
        return scores, order_scores(self.rule, scores + trained.spread, self.choice_bias)

    def denominator_error(
        self, trained: Trained, scores: torch.Tensor, exact: torch.Tensor, outside: torch.Tensor
    ) -> torch.Tensor:
        """[T], how far the log of the completed softmax denominator is off; 0 where none is completed."""
        if not self.completes:
            return scores.new_zeros(len(scores))
        guessed = torch.where(outside, scores + trained.spread.square() / 2, exact)
        return (guessed.logsumexp(dim=1) - exact.logsumexp(dim=1)).abs()


def refine_fit(
    site: RouterSite, rule: GateRule, geometry: Geometry, hidden: torch.Tensor, aim: Aim
) -> Geometry:
    """The geometry trained to miss little expert weight; the given one where training does not help.

    Minimises a softplus of how far each chosen expert, weighed by its share, lies below the edge of the candidate set
    (the surrogate of conformal risk control's risk), plus the error of the completed softmax denominator. Adam, cosine
    schedule, the best state on held tokens. Deterministic for a seed, a device and a number of threads.

    Args:
        site: the gate.
        rule: its rule.
        geometry: the closed form.
        hidden: [T, D], router inputs of the fit split.
        aim: the sets to train for.
    """
    problem = _Problem(site, rule, geometry, hidden)
    held = torch.arange(len(hidden)) % HELD == HELD - 1
    seen, kept = torch.arange(len(hidden))[~held], torch.arange(len(hidden))[held]
    steps = min(STEPS, EPOCHS * len(seen) // BATCH)
    if not len(kept) or geometry.experts == rule.top_k:
        return geometry
    start = _start(problem, geometry)
    aim = _settled(problem, start, kept, aim)
    best, state = _loss_on(problem, start, kept, aim), start
    for trained in _train(problem, start, seen, aim, steps):
        loss = _loss_on(problem, trained, kept, aim)
        if loss < best:
            best, state = loss, trained.copy()
    return geometry if state is start else _geometry(problem, geometry, state)


def _start(problem: _Problem, geometry: Geometry) -> Trained:
    device = problem.mean.device
    arrays = (geometry.projection, directions(geometry), geometry.spread)
    return Trained(*(torch.tensor(array, device=device) for array in arrays))


def _settled(problem: _Problem, start: Trained, kept: torch.Tensor, aim: Aim) -> Aim:
    """The aim with a number of candidates that can be trained for."""
    rule, wanted = problem.rule, aim.candidates
    if wanted is None:
        ranks, shares = _ranks(problem, start, kept)
        mass = torch.bincount(ranks.flatten(), shares.flatten(), minlength=rule.experts).cpu().numpy()
        missed = 1.0 - np.cumsum(mass) / max(mass.sum(), 1e-30)
        wanted = int(np.flatnonzero(missed <= TARGET)[0]) + 1
    least = anchor_ranks(rule, rule.experts)[1]
    return replace(aim, candidates=min(max(wanted, least), rule.experts - 1))


def _ranks(problem: _Problem, trained: Trained, which: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    ranks, shares = [], []
    for part in torch.split(which, BATCH):
        centred, _, ids, share = problem.batch(part)
        order = problem.order(trained, centred)[1].argsort(dim=1, descending=True)
        ranks.append(order.argsort(dim=1).gather(1, ids))
        shares.append(share)
    return torch.cat(ranks), torch.cat(shares)


def _edge(rule: GateRule, order: torch.Tensor, aim: Aim, width: float = 0.0) -> torch.Tensor:
    """[T, 1], the score below which an expert is no candidate, with a gradient.

    For adaptive sets the margin makes the mean size C in this batch, and moves with the scores within `width` of the
    edge: raising all of them gains nothing.
    """
    if not aim.adaptive:
        around = order.topk(min(aim.size + 2, order.shape[1]), dim=1)[0]
        return around[:, aim.size - 2 :].mean(dim=1, keepdim=True)
    ranked = order.topk(anchor_ranks(rule, order.shape[1])[1], dim=1)[0]
    anchor = anchors(rule, ranked)
    gaps = (anchor - order).flatten()
    margin = gaps.detach().kthvalue(aim.size * len(order))[0]
    near = (gaps.detach() - margin).abs() <= width
    drift = (gaps - gaps.detach()).masked_fill(~near, 0.0).sum() / near.sum().clamp(min=1)
    return anchor - drift - margin


def _loss(problem: _Problem, trained: Trained, which: torch.Tensor, aim: Aim, width: float) -> torch.Tensor:
    centred, exact, ids, shares = problem.batch(which)
    scores, order = problem.order(trained, centred)
    edge = _edge(problem.rule, order, aim, width)
    short = edge - order.gather(1, ids)
    loss = (shares * functional.softplus(short / width)).sum(dim=1)
    strayed = ((scores - exact).square() / problem.error).mean(dim=1)
    wrong = problem.denominator_error(trained, scores, exact, order < edge)
    return (loss + wrong + problem.loyalty * strayed).mean()


def _loss_on(problem: _Problem, trained: Trained, kept: torch.Tensor, aim: Aim) -> float:
    """What the held tokens lose: missed weight, plus the relative error of completed denominators."""
    total = 0.0
    with torch.no_grad():
        for part in torch.split(kept, BATCH):
            centred, exact, ids, shares = problem.batch(part)
            scores, order = problem.order(trained, centred)
            edge = _edge(problem.rule, order, aim)
            missed = (shares * (order.gather(1, ids) < edge)).sum(dim=1)
            wrong = problem.denominator_error(trained, scores, exact, order < edge)
            total += float((missed + wrong).sum())
    return total / len(kept)


def _train(problem: _Problem, start: Trained, seen: torch.Tensor, aim: Aim, steps: int) -> Iterator[Trained]:
    """Yields the arrays `CHECKS` times; they go on changing."""
    trained = start.copy()
    groups = []
    for array in trained.arrays():
        groups.append({"params": [array.requires_grad_()], "lr": RATE * float(array.detach().abs().mean())})
    optimiser = torch.optim.Adam(groups)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: min(1.0, (step + 1) / 20) * (1 + math.cos(math.pi * step / steps)) / 2
    )
    width = _width(problem, start, seen[:BATCH])
    generator = torch.Generator().manual_seed(aim.seed)
    for step in range(1, steps + 1):
        which = seen[torch.randint(len(seen), (BATCH,), generator=generator)]
        optimiser.zero_grad()
        _loss(problem, trained, which, aim, width).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
        with torch.no_grad():
            trained.spread.clamp_(min=0.0)
        if step % max(1, steps // CHECKS) == 0:
            yield trained


def _width(problem: _Problem, start: Trained, which: torch.Tensor) -> float:
    """The softplus's width: part of the distance between the scores around the K-th, which every family has its own of."""
    centred = problem.batch(which)[0]
    order = problem.order(start, centred)[1]
    first, last = anchor_ranks(problem.rule, order.shape[1])
    ranked = order.topk(min(last + 1, order.shape[1]), dim=1)[0]
    return max(0.4 * float((ranked[:, first] - ranked[:, -1]).mean()), 1e-6)


def _geometry(problem: _Problem, geometry: Geometry, state: Trained) -> Geometry:
    """The trained arrays as a geometry, with the residuals of the new approximation."""
    rows, linear, spread = (array.cpu().numpy() for array in state.arrays())
    centres, colour = split_directions(linear, geometry.levels)
    weight = problem.site.weight.detach().double().cpu().numpy()
    remainder = left_out(weight, linear, rows, geometry.common)
    return replace(
        geometry,
        projection=np.ascontiguousarray(rows),
        centres=centres,
        colour=colour,
        residual=np.linalg.norm(remainder, axis=1).astype(np.float32),
        spread=np.ascontiguousarray(spread),
    )
