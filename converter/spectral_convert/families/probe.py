"""Asks a router of random weights about random tokens: its structure answers, so no checkpoint is needed."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from spectral_runtime.attaching.discovery import RouterSite, takes_bias
from spectral_runtime.errors import ModelError

TOKENS = 96
LOGIT_SPREAD = 2.0
"""Standard deviation of the probe's logits: wide enough that rules differ, none saturates."""


@dataclass(frozen=True, slots=True)
class Probe:
    """A router's answer to random input, and the tensors it was computed from."""

    hidden: torch.Tensor
    """[T, D], what the linear gate multiplies."""
    weight: torch.Tensor
    bias: torch.Tensor | None
    choice_bias: torch.Tensor | None
    weights: torch.Tensor
    """[T, K], before a scale per expert."""
    ids: torch.Tensor
    expert_scale: bool


def probe_router(site: RouterSite, dtype: torch.dtype = torch.float32) -> Probe:
    """Runs a copy of the router, with random tensors of `dtype` on the CPU.

    Raises:
        ModelError: when the router's output has not its family's form.
    """
    twin = _random_twin(site, dtype)
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(TOKENS, twin.weight.shape[1], generator=generator).to(dtype)
    with torch.no_grad():
        weights, ids = twin.route_of(_call(twin, hidden))
        scale = getattr(twin.module, "per_expert_scale", None)
        plain = weights if scale is None else weights / scale[ids]
        inputs = twin.gate_input(hidden)
    return Probe(inputs, twin.weight, twin.bias, twin.choice_bias, plain, ids, scale is not None)


def _call(site: RouterSite, hidden: torch.Tensor) -> Any:
    """Most routers take rows; the others need a batch dimension."""
    extra = (site.choice_bias,) if takes_bias(site.module) else ()
    try:
        return site.module(hidden, *extra)
    except (ValueError, IndexError):
        return site.module(hidden.unsqueeze(0), *extra)
    except TypeError as error:
        kind = type(site.module).__name__
        raise ModelError(site.path, expected="a router of hidden states", found=f"{kind}: {error}") from error


def _random_twin(site: RouterSite, dtype: torch.dtype) -> RouterSite:
    """The same router with tensors of its own; a choice bias kept in the block comes along."""
    memo: dict[int, Any] = {}
    module = copy.deepcopy(site.module, memo).to_empty(device="cpu").eval()
    owner = None if site.choice_bias_at is None else site.choice_bias_at[0]
    block = site.block
    if owner is site.block:
        block = nn.Module()
        block.register_buffer(site.choice_bias_at[1], torch.empty(site.weight.shape[0]))  # type: ignore[index]
        memo[id(owner)] = block
    for target in {module, block} if block is not site.block else {module}:
        _fill(target, torch.Generator().manual_seed(0))
    module.to(dtype)
    places = {name: _moved(getattr(site, name), memo) for name in ("weight_at", "bias_at", "choice_bias_at")}
    return RouterSite(site.path, module, block, site.contract, **places, logits_index=site.logits_index)


def _moved(place: Any, memo: dict[int, Any]) -> Any:
    return None if place is None else (memo[id(place[0])], place[1])


def _fill(module: nn.Module, generator: torch.Generator) -> None:
    tensors = [*module.named_parameters(), *module.named_buffers()]
    with torch.no_grad():
        for _, tensor in sorted(tensors, key=lambda item: item[0]):
            if not tensor.is_floating_point():
                tensor.zero_()
            elif tensor.dim() == 2 and len(tensor) > 1:
                spread = LOGIT_SPREAD / tensor.shape[1] ** 0.5
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * spread)
            else:
                # around zero for a bias that decides ties of like scores; a scale may well be negative too
                tensor.copy_(torch.rand(tensor.shape, generator=generator) - 0.3)
