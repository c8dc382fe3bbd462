"""What an attached router does with hidden states, per mode: the arithmetic of `dense`, `prefilter`, `geometric`."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch

from spectral_runtime import cuda
from spectral_runtime.attaching import operators
from spectral_runtime.attaching.candidates import candidate_mask, order_scores
from spectral_runtime.attaching.discovery import RouterSite
from spectral_runtime.attaching.scorer import Scorer
from spectral_runtime.attaching.selection import choice_scores, expert_scores, gate_logits, select_experts
from spectral_runtime.bundle.manifest import Mode
from spectral_runtime.gate import GateRule
from spectral_runtime.geometry import Geometry


@dataclass(slots=True)
class AttachedLayer:
    """One layer's router as it now runs."""

    site: RouterSite
    rule: GateRule
    mode: Mode
    candidates: int
    scorer: Scorer | None
    margin: float | None = field(default=None)
    """Of adaptive `prefilter` sets, which hold at most C experts."""
    calls: int = field(default=0)
    """Forward calls that really entered; not counted inside a compiled graph."""
    geometry: Geometry | None = field(default=None)
    """The arrays behind `scorer`, which the fused CUDA router uploads."""
    _fused: int | None = field(default=None)
    """Number of the fused CUDA operator's value; None before it was asked for, -1 where there is none."""

    @property
    def dense(self) -> bool:
        """Whether the exact gate decides: `dense`, `exact`, and `prefilter` with C = E."""
        whole = self.mode == "prefilter" and self.candidates >= self.rule.experts and self.margin is None
        return self.mode in ("dense", "exact") or whole

    @property
    def passes_through(self) -> bool:
        """Whether the family's own router runs untouched: the exact gate, where no fused one serves it."""
        return self.dense and self.fused < 0

    @property
    def fused(self) -> int:
        """The operator's number on this GPU, or -1; decided at the first call, never while compiling."""
        if self._fused is None:
            if torch.compiler.is_compiling():
                return -1
            self._fused = fused_value(self)
        return self._fused

    def route(self, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Logits [T, E], ids int64 [T, K] and weights [T, K] for hidden [..., D], in the geometric modes."""
        hidden = hidden.reshape(-1, hidden.shape[-1])
        if self.fused >= 0:
            operator = operators.fused_gate if self.dense else operators.fused_geometry
            answer: operators.Triple = operator(hidden, self.site.weight, self.fused)
            return answer
        assert self.scorer is not None
        self.scorer = self.scorer.to(hidden.device)
        scores = self.scorer.scores(hidden)
        if self.mode == "geometric":
            logits, mask = scores, None
        else:
            mask = self.candidate_mask(scores)
            exact = gate_logits(self.rule, hidden, self.site.weight, self.site.bias)
            # Outside the candidates the log-normal mean of the logit completes the softmax denominator.
            expected = scores + self.scorer.spread.square() / 2
            logits = torch.where(mask, exact, expected.to(exact.dtype))
        ids, weights = select_experts(self.rule, logits, self.site.choice_bias, mask)
        kind = torch.float32 if self.rule.returns == "float32" else hidden.dtype
        return logits, ids, weights.to(kind)

    def candidate_mask(self, scores: torch.Tensor) -> torch.Tensor:
        """Bool [T, E]: the C experts of highest choice score, each given the benefit of its spread.

        With a margin, those of them that come near enough to the K-th.
        """
        assert self.scorer is not None
        order = order_scores(self.rule, scores + self.scorer.spread, self.site.choice_bias)
        return candidate_mask(self.rule, order, self.candidates, self.margin)

    def set_sizes(self, hidden: torch.Tensor) -> torch.Tensor:
        """int64 [T], experts whose exact logit is used for hidden [T, D]."""
        if self.margin is None or self.scorer is None:
            exact = {"geometric": 0, "prefilter": self.candidates}.get(self.mode, self.rule.experts)
            return torch.full((len(hidden),), exact, device=hidden.device)
        return self.candidate_mask(self.scorer.to(hidden.device).scores(hidden)).sum(dim=1)

    def certified(self, hidden: torch.Tensor) -> torch.Tensor:
        """Bool [T]: tokens whose residual bound proves that the geometry chooses the gate's K experts.

        Group limits and softmax-plus-bias choices are not bounded expert by expert: never certified.
        """
        rule, scorer = self.rule, self.scorer
        if scorer is None or rule.groups > 1 or not rule.monotone or rule.top_k == rule.experts:
            return torch.zeros(len(hidden), dtype=torch.bool, device=hidden.device)
        scores, margins = scorer.scores(hidden), scorer.margins(hidden) + self._offset(scorer)
        bounded = rule if rule.score != "softmax" else replace(rule, score="logits")
        low = choice_scores(expert_scores(bounded, scores - margins), self.site.choice_bias)
        high = choice_scores(expert_scores(bounded, scores + margins), self.site.choice_bias)
        chosen = low.topk(rule.top_k, dim=1)[1]
        rest = high.scatter(1, chosen, float("-inf")).amax(dim=1)
        return low.gather(1, chosen).amin(dim=1) > rest

    def _offset(self, scorer: Scorer) -> torch.Tensor:
        """[E], what logit and score differ by at the mean: rounding, unless the geometry was healed."""
        at_mean = torch.nn.functional.linear(scorer.mean[None], self.site.weight.float())[0]
        bias = self.site.bias
        return (at_mean - scorer.beta if bias is None else at_mean + bias.float() - scorer.beta).abs()


def fused_value(layer: AttachedLayer) -> int:
    """Builds the fused CUDA router of a layer where one can serve it; returns its number, or -1."""
    site, rule = layer.site, layer.rule
    if not site.weight.is_cuda or not operators.enabled() or cuda.unsupported(rule) is not None:
        return -1
    if layer.dense:
        if not cuda.dense_pays(rule):
            return -1
        return operators.keep(operators.FusedGate(rule, site.choice_bias, site.bias))
    if layer.geometry is None or layer.geometry.levels > 4 or layer.geometry.colours > 32:
        return -1
    if layer.margin is not None:  # the fused router knows sets of one size
        return -1
    bias = None if site.choice_bias is None else site.choice_bias.detach().float().cpu().numpy()
    candidates = layer.candidates if layer.mode == "prefilter" else 0
    value = operators.FusedGeometry(
        rule, layer.geometry, bias, candidates, weight=site.weight, bias=site.bias
    )
    return operators.keep(value)
