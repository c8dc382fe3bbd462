"""The gate rule in torch, bit for bit as the families' own code does it (twin of `gate.select_experts`)."""

from __future__ import annotations

import torch
from torch.nn import functional

from spectral_runtime.gate import GateRule


def gate_logits(
    rule: GateRule, hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """The gate's logits [T, E] for hidden [T, D], in the dtype the family multiplies in."""
    if rule.linear == "float32":
        weight, hidden = weight.float(), hidden.float()
        bias = None if bias is None else bias.float()
    return functional.linear(hidden.to(weight.dtype), weight, bias)


def bent_logits(rule: GateRule, logits: torch.Tensor) -> torch.Tensor:
    """Logits [T, E] after the family's own scaling and soft cap."""
    if rule.logit_scale != 1.0:
        logits = logits * rule.logit_scale
    if rule.softcap:
        logits = torch.tanh(logits / rule.softcap) * rule.softcap
    return logits


def expert_scores(rule: GateRule, logits: torch.Tensor) -> torch.Tensor:
    """The family's score of every expert [T, E], before any bias, in the dtype the rule names."""
    logits = bent_logits(rule, logits.float() if rule.scores == "float32" else logits)
    if rule.score == "softmax":
        return functional.softmax(logits, dim=-1)
    if rule.score == "sigmoid":
        return logits.sigmoid()
    if rule.score == "sqrtsoftplus":
        return functional.softplus(logits).sqrt()
    return logits


def best(values: torch.Tensor, count: int, *, ties: bool = False) -> torch.Tensor:
    """Positions of the `count` largest; with `ties` equal ones by smaller position, which torch.topk leaves open."""
    if ties:
        return values.argsort(dim=-1, descending=True, stable=True)[..., :count]
    return torch.topk(values, k=count, dim=-1)[1]


def limit_groups(rule: GateRule, choice: torch.Tensor, *, ties: bool = False) -> torch.Tensor:
    """Choice scores [T, E] with every group but the best `groups_kept` filled."""
    if rule.groups == 1:
        return choice
    grouped = choice.view(choice.shape[0], rule.groups, -1)
    totals = grouped.topk(2, dim=-1)[0].sum(dim=-1) if rule.group_score == "top2" else grouped.amax(dim=-1)
    kept = best(totals, rule.groups_kept, ties=ties)
    outside = torch.ones_like(totals, dtype=torch.bool).scatter_(1, kept, False)
    fill = float("-inf") if rule.group_fill == "-inf" else 0.0
    return grouped.masked_fill(outside.unsqueeze(-1), fill).view_as(choice)


def choice_scores(scores: torch.Tensor, choice_bias: torch.Tensor | None) -> torch.Tensor:
    """What experts are chosen by, [T, E]: the scores, plus the family's choice bias."""
    return scores if choice_bias is None else scores + choice_bias


def select_experts(
    rule: GateRule,
    logits: torch.Tensor,
    choice_bias: torch.Tensor | None = None,
    mask: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Chooses and weighs K experts per token.

    Args:
        rule: the family's rule.
        logits: [T, E]; approximate ones outside `mask` complete a softmax denominator.
        choice_bias: [E], for rules that have one.
        mask: bool [T, E], the candidates; None means all.

    Returns:
        ids int64 [T, K] and weights [T, K] in the dtype of the scores.
    """
    scores = expert_scores(rule, logits)
    ids = choose_experts(rule, scores, choice_bias, mask)
    return ids, expert_weights(rule, scores, logits, ids)


def choose_experts(
    rule: GateRule, scores: torch.Tensor, choice_bias: torch.Tensor | None, mask: torch.Tensor | None
) -> torch.Tensor:
    """Ids int64 [T, K] of the chosen by the family's scores [T, E]; see `select_experts`."""
    choice = choice_scores(scores, choice_bias)
    # Groups with fewer than two candidates, and experts that are none, tie at -inf.
    ties = mask is not None and rule.groups > 1
    if mask is not None:
        choice = choice.masked_fill(~mask, float("-inf"))
    return best(limit_groups(rule, choice, ties=ties), rule.top_k, ties=ties)


def expert_weights(
    rule: GateRule, scores: torch.Tensor, logits: torch.Tensor, ids: torch.Tensor
) -> torch.Tensor:
    """Weights [T, K] of the chosen experts, from their scores or logits [T, E]."""
    if rule.weight == "sparsemixer":
        return sparsemixer_weights(rule, logits, ids) * rule.scale
    chosen = (scores if rule.weight == "score" else bent_logits(rule, logits)).gather(1, ids)
    if rule.weight == "softmax":
        chosen = functional.softmax(chosen, dim=-1, dtype=torch.float32)
    elif rule.weight == "sigmoid":
        chosen = chosen.sigmoid()
    if rule.normalise:
        total = chosen.sum(dim=-1, keepdim=True)
        if rule.normalise_min:
            total = total.clamp(min=rule.normalise_min)
        chosen = chosen / (total + rule.normalise_eps)
    return chosen * rule.scale if rule.scale != 1.0 else chosen


def sparsemixer_weights(rule: GateRule, logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Weights [T, K]: each pick's share of a softmax over the logits near it, earlier picks left out."""
    weights, left = [], logits
    for pick in ids.unbind(dim=1):
        chosen = pick.unsqueeze(1)
        best = left.amax(dim=-1, keepdim=True)
        far = (best - logits) / logits.abs().clamp(min=best) > rule.threshold
        near = left.masked_fill(far.scatter(1, chosen, False), float("-inf"))
        weights.append(functional.softmax(near, dim=-1).gather(1, chosen))
        left = left.scatter(1, chosen, float("-inf"))
    return torch.cat(weights, dim=1)
