"""What an attached router does with hidden states, per mode: the arithmetic of `dense`, `prefilter`, `geometric`."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch

from spectral_runtime.attach.discovery import RouterSite
from spectral_runtime.attach.scorer import Scorer
from spectral_runtime.attach.selection import choice_scores, expert_scores, gate_logits, select_experts
from spectral_runtime.bundle.manifest import Mode
from spectral_runtime.gate import GateRule


@dataclass(slots=True)
class AttachedLayer:
    """One layer's router as it now runs."""

    site: RouterSite
    rule: GateRule
    mode: Mode
    candidates: int
    scorer: Scorer | None
    calls: int = field(default=0)
    """Forward calls that really entered; not counted inside a compiled graph."""

    @property
    def passes_through(self) -> bool:
        """Whether the family's own router runs untouched: `dense`, `exact`, and `prefilter` with C = E."""
        whole = self.mode == "prefilter" and self.candidates >= self.rule.experts
        return self.mode in ("dense", "exact") or whole

    def route(self, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Logits [T, E], ids int64 [T, K] and weights [T, K] for hidden [..., D], in the geometric modes."""
        assert self.scorer is not None
        hidden = hidden.reshape(-1, hidden.shape[-1])
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
        """Bool [T, E]: the C experts of highest choice score, each given the benefit of its spread."""
        assert self.scorer is not None
        widened = expert_scores(self.rule, scores + self.scorer.spread)
        choice = choice_scores(self.rule, widened, self.site.choice_bias)
        ids = choice.topk(self.candidates, dim=-1)[1]
        return torch.zeros_like(choice, dtype=torch.bool).scatter_(1, ids, True)

    def certified(self, hidden: torch.Tensor) -> torch.Tensor:
        """Bool [T]: tokens whose residual bound proves that the geometry chooses the gate's K experts.

        Group limits and softmax-plus-bias choices are not bounded expert by expert: never certified.
        """
        rule, scorer = self.rule, self.scorer
        if scorer is None or rule.groups > 1 or not rule.monotone or rule.top_k == rule.experts:
            return torch.zeros(len(hidden), dtype=torch.bool, device=hidden.device)
        scores, margins = scorer.scores(hidden), scorer.margins(hidden)
        bounded = rule if rule.score != "softmax" else replace(rule, score="logits")
        low = choice_scores(bounded, expert_scores(bounded, scores - margins), self.site.choice_bias)
        high = choice_scores(bounded, expert_scores(bounded, scores + margins), self.site.choice_bias)
        chosen = low.topk(rule.top_k, dim=1)[1]
        rest = high.scatter(1, chosen, float("-inf")).amax(dim=1)
        return low.gather(1, chosen).amin(dim=1) > rest
