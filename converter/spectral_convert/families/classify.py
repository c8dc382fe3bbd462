"""Classifies a router by behaviour: runs it on random input and finds the rule that reproduces its output."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from spectral_runtime.attach.discovery import RouterSite
from spectral_runtime.attach.selection import gate_logits, select_experts
from spectral_runtime.errors import ConfigError, ModelError
from spectral_runtime.gate import GateRule

TOKENS = 64
TOLERANCE = 1e-6
"""Relative; families sum chosen weights in an unsorted order, which moves the last bits."""
SCALE_NAMES = ("routed_scaling_factor", "router_scaling_factor", "route_scale")
GROUP_NAMES = (("num_group", "topk_group"), ("n_group", "topk_group"))


@dataclass(frozen=True, slots=True)
class Probe:
    """A router's answer to random input."""

    hidden: torch.Tensor
    weights: torch.Tensor
    ids: torch.Tensor
    choice_bias: torch.Tensor | None


def classify_router(site: RouterSite) -> GateRule:
    """The rule that chooses the same experts and gives the same weights as the router, on random input.

    Raises:
        ModelError: when the router's output is not (logits, weights, ids) or no known rule reproduces it.
    """
    probe = _probe(site)
    for rule in candidate_rules(site, probe):
        if _reproduces(rule, site, probe):
            return rule
    kind = type(site.module).__name__
    remedy = "this family is not supported yet; `spectral families` lists those that are"
    raise ModelError(
        site.path, expected="a known scoring rule", found=f"{kind}, which none reproduces", remedy=remedy
    )


def _probe(site: RouterSite) -> Probe:
    module = copy.deepcopy(site.module)
    if not torch.isfinite(site.weight).all():
        raise ModelError(f"{site.path}.weight", expected="finite numbers", found="NaN or infinity")
    generator = torch.Generator().manual_seed(0)
    spread = 2.0 / site.weight.float().norm(dim=1).mean().clamp(min=1e-6).item()
    hidden = torch.randn(TOKENS, site.weight.shape[1], generator=generator) * spread
    bias = _randomise_choice_bias(module, site, generator)
    hidden = hidden.to(site.weight.device, site.weight.dtype)
    with torch.no_grad():
        output = module(hidden)
    ids, weights = _ids_and_weights(output, site)
    return Probe(hidden, weights, ids, bias)


def _randomise_choice_bias(
    module: nn.Module, site: RouterSite, generator: torch.Generator
) -> torch.Tensor | None:
    """Fresh checkpoints hold zeros there, which would hide what the bias does."""
    if site.choice_bias is None:
        return None
    tensors = (*module.parameters(), *module.buffers())
    bias = next(t for t in tensors if t.shape == site.choice_bias.shape and t.dtype == site.choice_bias.dtype)
    with torch.no_grad():
        bias.copy_(torch.rand(bias.shape, generator=generator) * 0.2)
    return bias.detach()


def _ids_and_weights(output: Any, site: RouterSite) -> tuple[torch.Tensor, torch.Tensor]:
    shapes_fit = isinstance(output, tuple) and len(output) == 3 and output[1].shape == output[2].shape
    if not shapes_fit or output[2].dtype != torch.int64:
        kind = type(site.module).__name__
        raise ModelError(site.path, expected="a router returning (logits, weights, ids)", found=kind)
    return output[2], output[1]


def candidate_rules(site: RouterSite, probe: Probe) -> Iterator[GateRule]:
    """Every rule the router's attributes allow, the commonest first."""
    fixed = {
        "experts": site.weight.shape[0],
        "top_k": probe.ids.shape[1],
        "choice_bias": probe.choice_bias is not None,
        "returns": "float32" if probe.weights.dtype == torch.float32 != probe.hidden.dtype else "model",
    }
    forms = [("softmax", "score"), ("logits", "softmax"), ("sigmoid", "score"), ("logits", "sigmoid"),
             ("sqrtsoftplus", "score"), ("sigmoid", "softmax")]  # fmt: skip
    linears = ("model",) if probe.hidden.dtype == torch.float32 else ("model", "float32")
    options = itertools.product(
        forms, (False, True), (0.0, 1e-6), _scales(site.module), _groupings(site.module), linears
    )
    for (score, weight), normalise, eps, scale, grouping, linear in options:
        if eps and not normalise:
            continue
        changes = {
            "score": score,
            "weight": weight,
            "normalise": normalise,
            "normalise_eps": eps,
            "scale": scale,
        }
        try:
            yield GateRule(**{**fixed, **changes, **grouping, "linear": linear})
        except ConfigError:
            continue


def _scales(module: nn.Module) -> tuple[float, ...]:
    found = (getattr(module, name, None) for name in SCALE_NAMES)
    return (1.0, *(float(value) for value in found if isinstance(value, int | float) and value != 1.0))


def _groupings(module: nn.Module) -> Iterator[dict[str, Any]]:
    for groups_name, kept_name in GROUP_NAMES:
        groups, kept = getattr(module, groups_name, None), getattr(module, kept_name, None)
        if groups and kept and 1 < groups and kept < groups:
            for score, fill in itertools.product(("top2", "max"), ("-inf", "zero")):
                yield {"groups": groups, "groups_kept": kept, "group_score": score, "group_fill": fill}
            return
    yield {}


def _reproduces(rule: GateRule, site: RouterSite, probe: Probe) -> bool:
    logits = gate_logits(rule, probe.hidden, site.weight.detach(), site.bias)
    ids, weights = select_experts(rule, logits, probe.choice_bias)
    kind = torch.float32 if rule.returns == "float32" else probe.hidden.dtype
    ours, theirs = _by_id(ids, weights.to(kind)), _by_id(probe.ids, probe.weights)
    if not torch.equal(ours[0], theirs[0]) or ours[1].dtype != theirs[1].dtype:
        return False
    return torch.allclose(ours[1].float(), theirs[1].float(), rtol=TOLERANCE, atol=1e-12)


def _by_id(ids: torch.Tensor, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    order = ids.argsort(dim=1)
    return ids.gather(1, order), weights.gather(1, order)
