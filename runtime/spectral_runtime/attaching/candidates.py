"""Which experts `prefilter` looks at, in torch: the best C by geometric choice score, or those of them within a margin."""

from __future__ import annotations

import torch

from spectral_runtime.attaching.selection import choice_scores, expert_scores
from spectral_runtime.gate import GateRule, anchor_ranks


def order_scores(rule: GateRule, logits: torch.Tensor, choice_bias: torch.Tensor | None) -> torch.Tensor:
    """What candidates are ordered by, [T, E], from widened scores [T, E] (twin of `reference.choice_scores`).

    A softmax without bias ranks like its logits, and a margin between logits does not depend on their common shift.
    """
    plain = rule.score == "softmax" and choice_bias is None
    return logits if plain else choice_scores(expert_scores(rule, logits), choice_bias)


def anchors(rule: GateRule, ranked: torch.Tensor) -> torch.Tensor:
    """[T, 1], the mean of the scores around the K-th, of scores [T, C] in descending order."""
    first, last = anchor_ranks(rule, ranked.shape[1])
    return ranked[:, first:last].mean(dim=1, keepdim=True)


def candidate_mask(
    rule: GateRule, order: torch.Tensor, count: int, margin: float | None = None
) -> torch.Tensor:
    """Bool [T, E]: the `count` best; with a margin, of those the best K and all within it below the anchor.

    Args:
        rule: tells K.
        order: float [T, E], from `order_scores`.
        count: C, at least the anchor's last rank when there is a margin.
        margin: in the units of `order`.
    """
    values, ids = order.topk(count, dim=-1)
    keep = torch.ones_like(values, dtype=torch.bool)
    if margin is not None:
        keep = values >= anchors(rule, values) - margin
        keep[:, : rule.top_k] = True
    return torch.zeros_like(order, dtype=torch.bool).scatter_(1, ids, keep)
