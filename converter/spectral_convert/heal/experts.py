"""The experts' forward while healing: grouped products, whose gradients are gathered back instead of added up atomically."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from spectral_convert.heal.mixed import replaced

NAME = "spectral_heal"

# Letters: T tokens, D hidden, E experts, K chosen, S = T K rows sorted by expert.


class _Spread(torch.autograd.Function):
    """hidden [T, D] to rows [S, D]; every token goes to K places, which its gradient is summed from."""

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, order: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(places)
        return hidden[order // places.shape[1]]

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        (places,) = ctx.saved_tensors
        return gradients[0][places].sum(dim=1), None, None


class _Combine(torch.autograd.Function):
    """Rows [S, D] to the weighted sum of every token's K."""

    @staticmethod
    def forward(
        ctx: Any, rows: torch.Tensor, weights: torch.Tensor, order: torch.Tensor, places: torch.Tensor
    ) -> torch.Tensor:
        ctx.save_for_backward(rows, weights, order, places)
        return (rows[places] * weights.unsqueeze(2)).sum(dim=1)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        rows, weights, order, places = ctx.saved_tensors
        (found,) = gradients
        by_rows = found[order // places.shape[1]] * weights.reshape(-1)[order].unsqueeze(1)
        by_weights = (rows[places].float() * found.unsqueeze(1)).sum(dim=2)
        return by_rows.to(rows.dtype), by_weights.to(weights.dtype), None, None


def forward(module: Any, hidden: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Drop-in for transformers' `grouped_mm` experts: hidden [T, D], ids and weights [T, K] to [T, D].

    The general gradient of an index sorts its S entries or adds them atomically; here the permutation is known both ways.
    """
    from transformers.integrations.moe import _grouped_linear, grouped_mm_experts_forward

    if module.has_bias or not module.has_gate or getattr(module, "has_post_expert_norm", False):
        given: torch.Tensor = grouped_mm_experts_forward(module, hidden, ids, weights)
        return given
    narrow = torch.uint8 if module.num_experts <= 256 else torch.int16  # radix sorts go through all bits
    chosen, order = torch.sort(ids.reshape(-1).to(narrow))
    places = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
    places = places.view_as(ids)
    experts = torch.arange(module.num_experts, device=order.device, dtype=narrow)
    ends = torch.searchsorted(chosen, experts, right=True, out_int32=True)
    transposed = module.is_transposed
    rows = _Spread.apply(hidden, order, places)  # type: ignore[no-untyped-call]
    inner = _grouped_linear(rows, module.gate_up_proj, ends, is_transposed=transposed)
    outer = _grouped_linear(module._apply_gate(inner), module.down_proj, ends, is_transposed=transposed)
    found: torch.Tensor = _Combine.apply(outer, weights, order, places)  # type: ignore[no-untyped-call]
    return found.to(hidden.dtype)


@contextmanager
def gathered(models: Sequence[Any]) -> Iterator[None]:
    """Uses this forward wherever a model would use transformers' `grouped_mm`; undone at the end."""
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

    ALL_EXPERTS_FUNCTIONS.register(NAME, forward)
    configs = [
        module.config
        for model in models
        for module in model.modules()
        if hasattr(module, "is_transposed") and module.config._experts_implementation == "grouped_mm"
    ]
    with replaced(configs, "_experts_implementation", NAME):
        yield
