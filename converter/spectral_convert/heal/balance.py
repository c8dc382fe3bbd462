"""The expert load: what the original gives each expert, and a term that keeps the student from piling up on a few."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn import functional

from spectral_convert.heal.mixed import mixed
from spectral_convert.heal.router import TrainedRouter, load_of, shares_of
from spectral_runtime.attaching.discovery import RouterSite
from spectral_runtime.attaching.selection import expert_scores, gate_logits
from spectral_runtime.gate import GateRule

EDGE = 1e-6
"""Sigmoids are taken to lie this far from 0 and 1."""


class _Watched:
    """Mixed in front of a teacher's router class; keeps load and scores of the last forward."""

    spectral_site: tuple[RouterSite]
    spectral_rule: GateRule | None
    spectral_load: torch.Tensor
    spectral_scores: torch.Tensor

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        output = super().forward(hidden_states, *args, **kwargs)  # type: ignore[misc]
        site = self.spectral_site[0]
        self.spectral_load = load_of(site.route_of(output)[1], site.weight.shape[0])
        rule = self.spectral_rule
        if rule is not None:
            exact = gate_logits(rule, site.gate_input(hidden_states), site.weight, site.bias)
            self.spectral_scores = expert_scores(rule, exact)
        return output


class LoadKeeper:
    """Watches the teacher's routers while the student trains.

    Args:
        sites: the teacher's routers.
        routers: the student's, in the same order.
        scores: keep what `unlike` needs, too.
        fused: compile the divergence.
    """

    def __init__(
        self,
        sites: Sequence[RouterSite],
        routers: Sequence[TrainedRouter],
        *,
        scores: bool = True,
        fused: bool = False,
    ) -> None:
        self.sites, self.routers, self.scores = sites, routers, scores
        self.divergence = torch.compile(divergence) if fused else divergence

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Records the teacher's load of every forward inside."""
        modules: list[Any] = [site.module for site in self.sites]
        for module, site, router in zip(modules, self.sites, self.routers, strict=True):
            module.spectral_site, module.spectral_rule = (site,), router.rule if self.scores else None
        try:
            with mixed(modules, _Watched):
                yield
        finally:
            for module in modules:
                del module.spectral_site, module.spectral_rule

    def excess(self) -> torch.Tensor:
        """Mean over layers of E sum_e (load - teacher's load)_e share_e.

        Fedus et al. 2021 push towards an even load; this pushes towards the original's: no force where they agree.
        """
        loads: list[Any] = [getattr(site.module, "spectral_load", None) for site in self.sites]
        terms = [
            len(router.load)
            * ((router.load - load).detach() * shares_of(router.rule, router.scored).mean(dim=0)).sum()
            for router, load in zip(self.routers, loads, strict=True)
        ]
        return torch.stack(terms).mean()

    def unlike(self) -> torch.Tensor:
        """Mean over layers and tokens of the divergence of the original's scores, each at its own hidden states."""
        terms = []
        for site, router in zip(self.sites, self.routers, strict=True):
            module: Any = site.module
            terms.append(self.divergence(router.rule, module.spectral_scores, router.scored))
        return torch.stack(terms).mean()

    def missed(self) -> torch.Tensor | float:
        """Mean listwise loss of the layers that choose candidates; 0 where there is none."""
        terms = [router.missed for router in self.routers if router.candidates]
        return torch.stack(terms).mean() if terms else 0.0


def divergence(rule: GateRule, wanted: torch.Tensor, found: torch.Tensor) -> torch.Tensor:
    """Mean over tokens of the divergence of scores [T, E] `found` from those that are wanted.

    Sigmoids are a chance for every expert by itself: their divergences are summed. As shares of their sum, in which the
    many small ones drown the few that are chosen, they hardly hold a router. Other scores are compared as shares.
    """
    if rule.score == "sigmoid":
        wanted, found = (scores.float().clamp(EDGE, 1.0 - EDGE) for scores in (wanted, found))
        chances = wanted * (wanted / found).log() + (1 - wanted) * ((1 - wanted) / (1 - found)).log()
        return chances.sum(dim=1).mean()
    wanted, found = shares_of(rule, wanted).float(), shares_of(rule, found).float()
    return functional.kl_div(found.clamp(min=1e-20).log(), wanted, reduction="batchmean")


def balance(load: torch.Tensor) -> dict[str, float]:
    """Facts of a load [E]: the busiest expert's multiple of an even share, the entropy's exponent, unused experts."""
    shares = load.double().cpu()
    entropy = -(shares * shares.clamp(min=1e-30).log()).sum()
    return {
        "busiest": round(float(shares.max() * len(shares)), 4),
        "effective_experts": round(float(entropy.exp()), 2),
        "unused": int((shares == 0).sum()),
    }
