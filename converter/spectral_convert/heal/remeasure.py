"""Watches a healed model route: what its geometries leave out of the gates, and the inputs for their certificates."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from spectral_convert.forward import watch_routers
from spectral_convert.heal.router import TrainedRouter, geometry_of, load_of
from spectral_convert.heal.student import Student, teacher_sites
from spectral_convert.text import TextSet
from spectral_runtime.attaching.discovery import RouterSite
from spectral_runtime.attaching.selection import gate_logits
from spectral_runtime.bundle import Bundle
from spectral_runtime.gate import GateRule
from spectral_runtime.geometry import Geometry


@dataclass(frozen=True, slots=True)
class HealedLayer:
    """One healed geometry and what it was seen doing."""

    site: RouterSite
    rule: GateRule
    geometry: Geometry
    explained: tuple[float, ...]
    """Share of the gate's logit variance after each level, then after the colour; 0 where it adds variance."""
    certify: torch.Tensor
    """[T, D], router inputs of the certify split."""
    load: torch.Tensor
    """[E], share of the choices on the fit split."""
    original_load: torch.Tensor
    """[E], the same in the original model."""


@dataclass(slots=True)
class _Sums:
    """Running sums of one layer, float64: of the logits' and, per rank, the remainders' first and second moments."""

    ranks: list[int]
    tokens: int
    first: NDArray[np.float64]
    """[1 + ranks, E]."""
    second: NDArray[np.float64]
    load: torch.Tensor
    certify: list[torch.Tensor]

    @classmethod
    def zero(cls, router: TrainedRouter) -> _Sums:
        rank, experts = int(router.projection.shape[0]), router.rule.experts
        levels = [3 * level for level in range(1, router.levels + 1)]
        ranks = levels if levels[-1] == rank else [*levels, rank]
        shape = (1 + len(ranks), experts)
        return cls(ranks, 0, np.zeros(shape), np.zeros(shape), torch.zeros(experts, dtype=torch.float64), [])

    def add(self, router: TrainedRouter, hidden: torch.Tensor, ids: torch.Tensor) -> None:
        """Takes in hidden [T, D] and the choices [T, K]."""
        site, rule = router.place[0], router.rule
        logits = gate_logits(rule, hidden, site.weight, site.bias).double()
        parts = torch.stack([logits, *(logits - part for part in partial_scores(router, hidden, self.ranks))])
        self.tokens += len(hidden)
        self.first += parts.sum(dim=1).cpu().numpy()
        self.second += parts.square().sum(dim=1).cpu().numpy()
        self.load += load_of(ids, rule.experts).double().cpu() * len(hidden)

    def variances(self) -> NDArray[np.float64]:
        """[1 + ranks, E], of the logits, then of what each rank leaves out."""
        mean = self.first / self.tokens
        return np.maximum(self.second / self.tokens - mean**2, 0.0)


def partial_scores(router: TrainedRouter, hidden: torch.Tensor, ranks: list[int]) -> list[torch.Tensor]:
    """Approximate logits float64 [T, E] from the first `rank` coordinates, for every rank."""
    centred = hidden.float() - router.mean
    points = centred @ router.projection.T
    offset: torch.Tensor = router.beta
    if router.common is not None:
        offset = offset + (centred @ router.common)[:, None]
    return [(points[:, :rank] @ router.linear[:, :rank].T + offset).double() for rank in ranks]


def remeasure(
    student: Student, teacher: Any, bundle: Bundle, splits: Mapping[str, TextSet]
) -> list[HealedLayer]:
    """The healed geometries with spread and shares of the fit split, on the hidden states the healed model has.

    Args:
        student: holding the best state, routers still trained ones.
        teacher: the untouched model.
        bundle: the one before.
        splits: `fit` and `certify`.
    """
    sites = [site for site in student.sites if site.path in student.routers]
    routers = [student.routers[site.path] for site in sites]
    sums = [_Sums.zero(router) for router in routers]

    def fitted(layer: int, hidden: torch.Tensor, route: Any) -> None:
        sums[layer].add(routers[layer], hidden, route[1])

    def kept(layer: int, hidden: torch.Tensor, _: Any) -> None:
        sums[layer].certify.append(hidden.cpu())

    for name, record in (("fit", fitted), ("certify", kept)):
        for _ in watch_routers(student.model, sites, splits[name].windows, f"measure {name}", record):
            pass
    loads = _loads(teacher, teacher_sites(teacher, student), splits["fit"])
    before = {layer.entry.path: layer.geometry for layer in bundle.layers}
    return [
        _finished(router, seen, before[router.place[0].path], load)
        for router, seen, load in zip(routers, sums, loads, strict=True)
    ]


def _loads(model: Any, sites: Sequence[RouterSite], text: TextSet) -> list[torch.Tensor]:
    """[E] for every router: each expert's share of the model's choices."""
    counts = [torch.zeros(site.weight.shape[0], dtype=torch.float64) for site in sites]

    def counted(layer: int, _: Any, route: Any) -> None:
        counts[layer] += torch.bincount(route[1].reshape(-1), minlength=len(counts[layer])).cpu()

    for _ in watch_routers(model, sites, text.windows, "measure original", counted):
        pass
    return [(count / count.sum()).float() for count in counts]


def _finished(router: TrainedRouter, seen: _Sums, old: Geometry | None, load: torch.Tensor) -> HealedLayer:
    site = router.place[0]
    assert old is not None
    variances = seen.variances()
    spread = np.ascontiguousarray(np.sqrt(variances[-1]), dtype=np.float32)
    total = max(float(variances[0].sum()), 1e-30)
    shares = tuple(max(0.0, 1.0 - float(left.sum()) / total) for left in variances[1:])
    geometry = dataclasses.replace(geometry_of(router, old), spread=spread)
    own = (seen.load / seen.tokens).float()
    return HealedLayer(site, router.rule, geometry, shares, torch.cat(seen.certify), own, load)
