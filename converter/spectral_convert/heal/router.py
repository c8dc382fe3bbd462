"""A router whose geometry is trained: the arithmetic of an attached layer, with gradients and side terms."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from spectral_runtime.attaching.candidates import candidate_mask, order_scores
from spectral_runtime.attaching.contract import Answer
from spectral_runtime.attaching.discovery import RouterSite
from spectral_runtime.attaching.selection import (
    choose_experts,
    expert_scores,
    expert_weights,
    gate_logits,
    select_experts,
)
from spectral_runtime.gate import GateRule
from spectral_runtime.geometry import Geometry, directions, left_out, split_directions

# Letters: T tokens, D hidden, E experts, K chosen, C candidates, R = 3L + S.


class TrainedRouter(nn.Module):
    """The geometry of one layer as float32 parameters."""

    mean: nn.Parameter
    """[D]."""
    projection: nn.Parameter
    """[R, D]."""
    linear: nn.Parameter
    """[E, R]: twice the centres level by level, then the colour."""
    beta: nn.Parameter
    """[E]."""
    common: nn.Parameter | None
    """[D], where the gate was centred."""
    spread: torch.Tensor
    """[E], as fitted; measured again at the end."""
    load: torch.Tensor
    """[E], share of the tokens' choices that each expert received in the last forward."""
    scored: torch.Tensor
    """[T, E], the experts' scores in the last forward, with gradient."""
    missed: torch.Tensor
    """Scalar, the listwise loss of the candidates; zero in the mode `geometric`."""

    def __init__(
        self,
        site: RouterSite,
        rule: GateRule,
        geometry: Geometry,
        candidates: int,
        margin: float | None = None,
    ) -> None:
        super().__init__()
        self.rule, self.candidates, self.margin, self.levels = rule, candidates, margin, geometry.levels
        self.place = (site,)  # in a tuple, so that the router does not become its own submodule
        device = site.weight.device
        arrays = (geometry.mean, geometry.projection, directions(geometry), geometry.beta)
        tensors = [nn.Parameter(torch.tensor(array, device=device)) for array in arrays]
        self.mean, self.projection, self.linear, self.beta = tensors
        common = geometry.common
        self.common = None if common is None else nn.Parameter(torch.tensor(common, device=device))
        self.register_buffer("spread", torch.tensor(geometry.spread, device=device))

    def scores(self, hidden: torch.Tensor) -> torch.Tensor:
        """Approximate logits float32 [T, E] of hidden [T, D]."""
        projection: torch.Tensor = self.projection
        linear: torch.Tensor = self.linear
        if self.common is not None:
            projection = torch.cat([projection, self.common[None]])
            linear = torch.cat([linear, torch.ones_like(self.beta)[:, None]], dim=1)
        return torch.addmm(self.beta, (hidden.float() - self.mean) @ projection.T, linear.T)

    def forward(self, hidden: torch.Tensor) -> Answer:
        """Chooses and weighs experts for hidden [T, D] as the attached layer does, and keeps the side terms."""
        site, rule = self.place[0], self.rule
        approximate, bias = self.scores(hidden), site.choice_bias
        logits, mask = approximate, None
        if self.candidates:
            exact = gate_logits(rule, hidden, site.weight, site.bias)
            order = order_scores(rule, approximate + self.spread, bias)
            mask = candidate_mask(rule, order, self.candidates, self.margin)
            # Of the geometry alone: through the hidden states it would bend the model to what is easy to route.
            alone = order_scores(rule, self.scores(hidden.detach()) + self.spread, bias)
            self.missed = listwise(rule, alone, exact.detach(), bias, count_of(mask))
            expected = approximate + self.spread.square() / 2
            logits = torch.where(mask, exact, expected.to(exact.dtype))
        scores = expert_scores(rule, logits)
        ids = choose_experts(rule, scores, bias, mask)
        weights = expert_weights(rule, scores, logits, ids)
        self.load, self.scored = load_of(ids, rule.experts), scores
        return Answer(logits, weights.to(torch.float32 if rule.returns == "float32" else hidden.dtype), ids)


def count_of(mask: torch.Tensor) -> torch.Tensor:
    """int64 [T, 1], candidates of every token."""
    return mask.sum(dim=1, keepdim=True)


def listwise(
    rule: GateRule,
    order: torch.Tensor,
    exact: torch.Tensor,
    bias: torch.Tensor | None,
    count: torch.Tensor,
) -> torch.Tensor:
    """Mean over tokens of the gate's weights times softplus(threshold - score) of its experts.

    The threshold is the score of the first expert that is left out. The candidate set has no gradient of its own; this
    pulls what the gate would choose into it, the heavier the harder.

    Args:
        rule: the family's.
        order: [T, E], scores that candidates are ranked by.
        exact: [T, E], the gate's logits.
        bias: [E], of the choice.
        count: int64 [T, 1], candidates of every token.
    """
    with torch.no_grad():
        ids, weights = select_experts(rule, exact, bias)
        weights = weights.float()
        weights = weights / weights.sum(dim=1, keepdim=True).clamp(min=1e-20)
    threshold = order.sort(dim=1, descending=True)[0].gather(1, count.clamp(max=rule.experts - 1))
    scale = order.detach().std(dim=1, keepdim=True).clamp(min=1e-6)
    return (weights * functional.softplus((threshold - order.gather(1, ids)) / scale * 4)).sum(dim=1).mean()


def load_of(ids: torch.Tensor, experts: int) -> torch.Tensor:
    """[E], each expert's share of the choices `ids` [T, K]; no synchronisation."""
    counts = torch.histc(ids.float(), bins=experts, min=0, max=experts - 1)
    return counts / ids.numel()


def shares_of(rule: GateRule, scores: torch.Tensor) -> torch.Tensor:
    """[T, E], each expert's share of the scores [T, E]."""
    if rule.score == "logits":
        return functional.softmax(scores.float(), dim=-1)
    if rule.score != "softmax":
        return scores / scores.sum(dim=-1, keepdim=True).clamp(min=1e-20)
    return scores


def geometry_of(router: TrainedRouter, before: Geometry) -> Geometry:
    """The trained arrays as a geometry; residual from the gate's rows, spread still that of `before`."""
    weight = router.place[0].weight.detach().double().cpu().numpy()
    linear, projection = _array(router.linear), _array(router.projection)
    common = None if router.common is None else _array(router.common)
    centres, colour = split_directions(linear, router.levels)
    return Geometry(
        mean=_array(router.mean),
        projection=projection,
        centres=centres,
        colour=colour,
        beta=_array(router.beta),
        residual=np.linalg.norm(left_out(weight, linear, projection, common), axis=1).astype(np.float32),
        spread=before.spread,
        common=common,
    )


def _array(tensor: torch.Tensor) -> Any:
    return np.ascontiguousarray(tensor.detach().float().cpu().numpy())
