"""Observes the routers of a model over labelled text: who was chosen, and how decided the gate was."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from spectral_convert.forward import Batch, run_batches
from spectral_convert.text import Window
from spectral_runtime.attaching.discovery import RouterSite
from spectral_runtime.attaching.selection import choice_scores, expert_scores, gate_logits
from spectral_runtime.gate import GateRule

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class LayerRouting:
    """What one router did with every token; `refused` says why its numbers mean nothing, or is empty."""

    path: str
    experts: int
    top_k: int
    ids: NDArray[np.int16 | np.int32]
    """[T, K], the chosen experts, most important first."""
    margins: NDArray[np.float32]
    """[T], distance of the last chosen from the first rejected choice score, in standard deviations."""
    mean_probability: NDArray[np.float64]
    """[E]."""
    divergence: float
    """Mean Kullback-Leibler divergence in bits of a token's gate distribution from the mean one."""
    received: NDArray[np.float64]
    """[3, E], count, sum and sum of squares of the logits with which each expert was chosen."""
    refused: str = ""


@dataclass(slots=True)
class _Sums:
    """Running sums of one layer while batches pass."""

    site: RouterSite
    rule: GateRule
    ids: NDArray[np.int32]
    margins: NDArray[np.float32]
    probability: NDArray[np.float64]
    received: NDArray[np.float64]
    information: float = 0.0
    tokens: int = 0
    finite: bool = True

    @classmethod
    def of(cls, site: RouterSite, rule: GateRule, tokens: int) -> _Sums:
        shapes = np.zeros((tokens, rule.top_k), np.int32), np.zeros(tokens, np.float32)
        return cls(site, rule, *shapes, np.zeros(rule.experts), np.zeros((3, rule.experts)))

    def add(self, rows: NDArray[np.int64], hidden: torch.Tensor, route: tuple[Any, Any]) -> None:
        """Counts tokens `rows` [T] of the text, hidden [T, D], (weights, ids) [T, K]."""
        logits = gate_logits(self.rule, hidden, self.site.weight, self.site.bias).float()
        if not torch.isfinite(logits).all():
            self.finite = False
            return
        order = route[0].argsort(dim=1, descending=True, stable=True)
        ids = route[1].gather(1, order)
        scores = expert_scores(self.rule, logits)
        self.ids[rows] = ids.cpu().numpy()
        self.margins[rows] = self._margin(logits, scores, ids).cpu().numpy()
        shares = probabilities(scores)
        self.probability += shares.sum(dim=0).cpu().numpy()
        self.information += float(torch.xlogy(shares, shares).sum()) / np.log(2.0)
        self._receive(logits.gather(1, ids).double().cpu(), ids.cpu())
        self.tokens += len(rows)

    def _margin(self, logits: torch.Tensor, scores: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """Shift-invariant; with a choice bias or groups it is taken on what chooses."""
        plain = self.rule.monotone and self.site.choice_bias is None and self.rule.groups == 1
        choice = logits if plain else choice_scores(scores, self.site.choice_bias).float()
        last = choice.gather(1, ids).amin(dim=1)
        rest = choice.scatter(1, ids, float("-inf")).amax(dim=1)
        gap = torch.where(torch.isfinite(rest), last - rest, torch.zeros_like(last))
        return gap / choice.std(dim=1).clamp(min=1e-12)

    def _receive(self, values: torch.Tensor, ids: torch.Tensor) -> None:
        flat, experts = ids.reshape(-1).numpy(), self.rule.experts
        weights = values.reshape(-1).numpy()
        for row, power in enumerate((np.ones_like(weights), weights, weights**2)):
            self.received[row] += np.bincount(flat, power, minlength=experts)

    def result(self) -> LayerRouting:
        mean = self.probability / max(self.tokens, 1)
        positive = mean[mean > 0]
        divergence = self.information / max(self.tokens, 1) - float((positive * np.log2(positive)).sum())
        kind = np.int16 if self.rule.experts < 2**15 else np.int32
        routing = LayerRouting(
            self.site.path, self.rule.experts, self.rule.top_k, self.ids.astype(kind), self.margins,
            mean, divergence, self.received,
        )  # fmt: skip
        routing.refused = self._reason()
        return routing

    def _reason(self) -> str:
        if not self.finite:
            return "logits that are not finite"
        used = len(np.unique(self.ids))
        if used <= self.rule.top_k:
            return f"only {used} experts were ever chosen, K is {self.rule.top_k}"
        return ""


def refused_routing(path: str, reason: str) -> LayerRouting:
    """The place of a layer that could not be observed."""
    nothing = np.zeros(0)
    ids = np.zeros((0, 1), np.int16)
    return LayerRouting(path, 0, 0, ids, nothing.astype(np.float32), nothing, 0.0, np.zeros((3, 0)), reason)


def probabilities(scores: torch.Tensor) -> torch.Tensor:
    """Scores [T, E] as distributions in float64; a softmax's are already, others are divided by their sum."""
    positive = scores.double().clamp(min=0.0)
    return positive / positive.sum(dim=1, keepdim=True).clamp(min=1e-300)


@dataclass(slots=True)
class _Position:
    """Which rows of the text the running batch holds."""

    starts: NDArray[np.int64]
    rows: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    keep: torch.Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.bool))

    def start(self, batch: Batch) -> None:
        self.keep = batch.keep.reshape(-1)
        lengths = batch.keep.sum(dim=1).tolist()
        spans = [np.arange(n) + self.starts[w] for w, n in zip(batch.numbers, lengths, strict=True)]
        self.rows = np.concatenate(spans)


def observe_routing(
    model: Any, sites: Sequence[RouterSite], rules: Sequence[GateRule], windows: Sequence[Window]
) -> tuple[LayerRouting, ...]:
    """What every router did over the windows; broken ones are marked, not fatal."""
    sizes = [len(window.ids) for window in windows]
    position = _Position(np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(np.int64))
    sums = [_Sums.of(site, rule, sum(sizes)) for site, rule in zip(sites, rules, strict=True)]
    handles = [layer.site.module.register_forward_hook(_hook(layer, position)) for layer in sums]
    try:
        for _ in run_batches(model, windows, "observe routers", position.start):
            pass
    finally:
        for handle in handles:
            handle.remove()
    results = tuple(layer.result() for layer in sums)
    for result in results:
        if result.refused:
            logger.warning("%s is left out: %s", result.path, result.refused)
    return results


def _hook(layer: _Sums, position: _Position) -> Callable[..., None]:
    def observe(_: Any, args: Any, output: Any) -> None:
        keep = position.keep.to(args[0].device)
        hidden = layer.site.gate_input(args[0])[keep]
        weights, ids = layer.site.route_of(output)
        layer.add(position.rows, hidden, (weights[keep], ids[keep]))

    return observe
