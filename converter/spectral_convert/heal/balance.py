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


class _Watched:
    """Mixed in front of a teacher's router class; keeps load and shares of the last forward."""

    spectral_site: tuple[RouterSite]
    spectral_rule: GateRule | None
    spectral_load: torch.Tensor
    spectral_shares: torch.Tensor

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        output = super().forward(hidden_states, *args, **kwargs)  # type: ignore[misc]
        site = self.spectral_site[0]
        self.spectral_load = load_of(site.route_of(output)[1], site.weight.shape[0])
        rule = self.spectral_rule
        if rule is not None:
            exact = gate_logits(rule, site.gate_input(hidden_states), site.weight, site.bias)
            self.spectral_shares = shares_of(rule, expert_scores(rule, exact))
        return output


class LoadKeeper:
    """Watches the teacher's routers while the student trains.

    Args:
        sites: the teacher's routers.
        routers: the student's, in the same order.
        shares: keep what `unlike` needs, too.
    """

    def __init__(
        self, sites: Sequence[RouterSite], routers: Sequence[TrainedRouter], *, shares: bool = True
    ) -> None:
        self.sites, self.routers, self.shares = sites, routers, shares

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Records the teacher's load of every forward inside."""
        modules: list[Any] = [site.module for site in self.sites]
        for module, site, router in zip(modules, self.sites, self.routers, strict=True):
            module.spectral_site, module.spectral_rule = (site,), router.rule if self.shares else None
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
            len(router.load) * ((router.load - load).detach() * router.shares.mean(dim=0)).sum()
            for router, load in zip(self.routers, loads, strict=True)
        ]
        return torch.stack(terms).mean()

    def unlike(self) -> torch.Tensor:
        """Mean over layers and tokens of KL(original's shares of the scores || student's), each at its own hidden states."""
        terms = []
        for site, router in zip(self.sites, self.routers, strict=True):
            module: Any = site.module
            terms.append(divergence(module.spectral_shares, router.shares))
        return torch.stack(terms).mean()

    def missed(self) -> torch.Tensor | float:
        """Mean listwise loss of the layers that choose candidates; 0 where there is none."""
        terms = [router.missed for router in self.routers if router.candidates]
        return torch.stack(terms).mean() if terms else 0.0


def divergence(wanted: torch.Tensor, found: torch.Tensor) -> torch.Tensor:
    """Mean over tokens of KL(wanted || found) of shares [T, E]."""
    wanted, logs = wanted.float(), found.float().clamp(min=1e-20).log()
    return functional.kl_div(logs, wanted, reduction="batchmean")


def balance(load: torch.Tensor) -> dict[str, float]:
    """Facts of a load [E]: the busiest expert's multiple of an even share, the entropy's exponent, unused experts."""
    shares = load.double().cpu()
    entropy = -(shares * shares.clamp(min=1e-30).log()).sum()
    return {
        "busiest": round(float(shares.max() * len(shares)), 4),
        "effective_experts": round(float(entropy.exp()), 2),
        "unused": int((shares == 0).sum()),
    }
