"""Finds the routers of a loaded transformers model through what its own class records as `router_logits`."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from spectral_runtime.errors import ModelError

CHOICE_BIAS_NAMES = ("e_score_correction_bias", "expert_bias", "expert_biases")


@dataclass(frozen=True, slots=True)
class RouterSite:
    """One router: where it sits and the tensors that decide its choices."""

    path: str
    module: nn.Module
    weight: torch.Tensor
    """[E, D]."""
    bias: torch.Tensor | None
    """[E], added to the logits."""
    choice_bias: torch.Tensor | None
    """[E], added to the scores for the choice only."""
    logits_index: int
    """Position of the logits in the router's output tuple."""


def recorders(model: nn.Module) -> Iterator[Any]:
    """Yields the `router_logits` recorders declared by the model's classes (transformers `_can_record_outputs`)."""
    for module in model.modules():
        declared = (getattr(type(module), "_can_record_outputs", None) or {}).get("router_logits")
        if declared is not None:
            yield from declared if isinstance(declared, list | tuple) else (declared,)


def find_routers(model: nn.Module) -> tuple[RouterSite, ...]:
    """All routers of the model, in layer order.

    Raises:
        ModelError: when the model's classes declare no router, or none is present.
    """
    targets: dict[type[nn.Module], int] = {}
    for recorder in recorders(model):
        targets[getattr(recorder, "target_class", recorder)] = getattr(recorder, "index", 0)
    sites = tuple(_sites(model, targets))
    if not sites:
        name = type(model).__name__
        remedy = "convert a Mixture-of-Experts checkpoint; `spectral families` lists the supported ones"
        raise ModelError(
            name, expected="a model with routers", found="no Mixture-of-Experts layer", remedy=remedy
        )
    return sites


def _sites(model: nn.Module, targets: dict[type[nn.Module], int]) -> Iterator[RouterSite]:
    for path, module in model.named_modules():
        for target, index in targets.items():
            if isinstance(module, target):
                yield _site(path, module, index)
                break


def _site(path: str, module: nn.Module, index: int) -> RouterSite:
    weight = next((p for p in module.parameters() if p.dim() == 2), None)
    if weight is None:
        raise ModelError(
            path, expected="a router with one [experts, hidden] weight", found=type(module).__name__
        )
    experts = weight.shape[0]
    bias = next(
        (p for n, p in module.named_parameters() if n.endswith("bias") and _is_plain_bias(n, p, experts)),
        None,
    )
    tensors = (*module.named_parameters(), *module.named_buffers())
    choice = next((t for n, t in tensors if n.rsplit(".", 1)[-1] in CHOICE_BIAS_NAMES), None)
    return RouterSite(path, module, weight, bias, choice, index)


def _is_plain_bias(name: str, parameter: torch.Tensor, experts: int) -> bool:
    return name.rsplit(".", 1)[-1] == "bias" and parameter.shape == (experts,)


def router_sha256(site: RouterSite) -> str:
    """SHA-256 over dtype-independent float32 bytes of the router's weight, bias and choice bias."""
    digest = hashlib.sha256()
    for tensor in (site.weight, site.bias, site.choice_bias):
        if tensor is None:
            digest.update(b"-")
        else:
            values = tensor.detach().to("cpu", torch.float32).contiguous()
            digest.update(f"{tuple(values.shape)}".encode() + values.numpy().tobytes())
    return digest.hexdigest()
