"""Classifies a router by behaviour: runs it on random input and finds the rule that reproduces its output."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from spectral_convert.families.probe import Probe, probe_router
from spectral_runtime.attaching.discovery import RouterSite
from spectral_runtime.attaching.selection import gate_logits, select_experts
from spectral_runtime.errors import ConfigError, ModelError
from spectral_runtime.gate import Dtype, GateRule

TOLERANCE = 1e-6
"""Relative; families sum chosen weights in an unsorted order, which moves the last bits."""
FORMS = [("softmax", "score"), ("logits", "softmax"), ("sigmoid", "score"), ("logits", "sigmoid"),
         ("sqrtsoftplus", "score"), ("sigmoid", "softmax"), ("logits", "sparsemixer")]  # fmt: skip
GROUP_NAMES = (("num_group", "topk_group"), ("n_group", "topk_group"))
MULTIPLIES: tuple[Dtype, ...] = ("model", "float32")
SCORES: tuple[Dtype, ...] = ("float32", "model")
EPSILONS = (0.0, 1e-6)
"""What is added to the sum before dividing; smaller ones (1e-20) do not move a float32."""


def classify_routers(sites: Sequence[RouterSite]) -> list[GateRule]:
    """The rule of every router; those built alike are asked once.

    Raises:
        ModelError: as `classify_router`.
    """
    known: dict[Any, GateRule] = {}
    for site in sites:
        _refuse_not_finite(site)
        if _structure(site) not in known:
            known[_structure(site)] = classify_router(site)
    return [known[_structure(site)] for site in sites]


def _structure(site: RouterSite) -> Any:
    """What a router was built with: class, shapes and settings."""
    shapes = tuple((name, tuple(p.shape)) for name, p in site.module.named_parameters())
    settings = {k: v for k, v in vars(site.module).items() if v is None or isinstance(v, int | float | str)}
    return (
        type(site.module),
        shapes,
        repr(sorted((k, repr(v)) for k, v in settings.items() if k != "layer_idx")),
    )


def classify_router(site: RouterSite) -> GateRule:
    """The rule that chooses the same experts and gives the same weights as the router, on random input.

    The router's structure decides, not its weights: they may still be on the meta device.

    Raises:
        ModelError: when the router's output has not its family's form, or no known rule reproduces it.
    """
    _refuse_not_finite(site)
    with torch.no_grad():
        return _classify(site, probe_router(site))


def _classify(site: RouterSite, probe: Probe) -> GateRule:
    logits = functional.linear(probe.hidden, probe.weight, probe.bias)
    for bend, tolerance in itertools.product(_bends(site.module), (0.0, TOLERANCE)):
        for rule in candidate_rules(site, probe, bend):
            scaled = _with_scale(rule, (logits, probe), site, tolerance)
            if scaled is not None:
                return _with_dtypes(scaled, site)
    kind = type(site.module).__name__
    remedy = "this family is not supported yet; `spectral families` lists those that are"
    raise ModelError(
        site.path, expected="a known scoring rule", found=f"{kind}, which none reproduces", remedy=remedy
    )


def _refuse_not_finite(site: RouterSite) -> None:
    weight = site.weight
    if weight.device.type != "meta" and not torch.isfinite(weight).all():
        raise ModelError(f"{site.path}.weight", expected="finite numbers", found="NaN or infinity")


def candidate_rules(site: RouterSite, probe: Probe, bend: dict[str, Any]) -> Iterator[GateRule]:
    """Every rule the router's attributes allow with this bend of its logits, the commonest first, unscaled."""
    module = site.module
    fixed = {
        "experts": probe.weight.shape[0],
        "top_k": probe.ids.shape[1],
        "choice_bias": probe.choice_bias is not None,
        "expert_scale": probe.expert_scale,
    }
    options = itertools.product(_groupings(module), FORMS, _divisions(module))
    for grouping, (score, weight), division in options:
        thresholds = [2.0 * value for value in numbers_of(module)] if weight == "sparsemixer" else [0.0]
        for threshold in thresholds:
            form = {"score": score, "weight": weight, "threshold": threshold}
            try:
                yield GateRule(**{**fixed, **bend, **grouping, **form, **division})
            except ConfigError:
                continue


def numbers_of(module: nn.Module) -> list[float]:
    """The numbers a router was built with: where its scales, caps and thresholds must be among."""
    plain = [v for v in vars(module).values() if isinstance(v, int | float) and not isinstance(v, bool)]
    return sorted({float(value) for value in plain if value > 0})


def _bends(module: nn.Module) -> Iterator[dict[str, Any]]:
    yield {}
    for value in numbers_of(module):
        yield {"softcap": value}
        yield {"logit_scale": value}


def _divisions(module: nn.Module) -> Iterator[dict[str, Any]]:
    yield {}
    least = getattr(module, "norm_min", 0.0)
    for eps in EPSILONS:
        yield {"normalise": True, "normalise_eps": eps, "normalise_min": float(least)}


def _groupings(module: nn.Module) -> Iterator[dict[str, Any]]:
    for groups_name, kept_name in GROUP_NAMES:
        groups, kept = getattr(module, groups_name, None), getattr(module, kept_name, None)
        if groups and kept and groups > 1 and kept < groups:
            for score, fill in itertools.product(("top2", "max"), ("-inf", "zero")):
                yield {"groups": groups, "groups_kept": kept, "group_score": score, "group_fill": fill}
            break
    yield {}


def _with_scale(
    rule: GateRule, asked: tuple[torch.Tensor, Probe], site: RouterSite, tolerance: float
) -> GateRule | None:
    """The rule with the factor that makes its weights the router's; None when it does not reproduce them."""
    logits, probe = asked
    ours = _by_id(*select_experts(rule, logits, probe.choice_bias))
    theirs = _by_id(probe.ids, probe.weights)
    if not torch.equal(ours[0], theirs[0]):
        return None
    factor = float(theirs[1].double().sum() / ours[1].double().sum())
    known = [1.0, *numbers_of(site.module), *(1.0 / value for value in numbers_of(site.module))]
    scale = min(known, key=lambda value: abs(value - factor))
    same = torch.allclose(ours[1] * scale, theirs[1].float(), rtol=tolerance, atol=1e-6 * tolerance)
    return replace(rule, scale=scale) if same else None


def _with_dtypes(rule: GateRule, site: RouterSite) -> GateRule:
    """The rule with the dtypes it computes in, seen in bfloat16, where ties leave only weights to compare."""
    try:
        probe = probe_router(site, torch.bfloat16)
    except (RuntimeError, TypeError):
        return replace(rule, linear="float32", returns="float32")  # a gate that must stay in float32
    returns: Dtype = "float32" if probe.weights.dtype == torch.float32 else "model"
    for linear, scores in itertools.product(MULTIPLIES, SCORES):
        tried = replace(rule, linear=linear, scores=scores, returns=returns)
        logits = gate_logits(tried, probe.hidden, probe.weight, probe.bias)
        weights = select_experts(tried, logits, probe.choice_bias)[1].to(probe.weights.dtype)
        ours, theirs = weights.float().sort(dim=1)[0], probe.weights.float().sort(dim=1)[0]
        if torch.allclose(ours, theirs, rtol=TOLERANCE, atol=1e-12):
            return tried
    return replace(rule, returns=returns)


def _by_id(ids: torch.Tensor, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    order = ids.argsort(dim=1)
    return ids.gather(1, order), weights.gather(1, order)
