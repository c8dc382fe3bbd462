"""Softmax, top-k and renormalisation of rows of logits in one Triton kernel: the fused peer of the benchmark."""

from __future__ import annotations

import torch
import triton
import triton.language as tl


@triton.jit
def _kernel(logits, ids, weights, experts, K: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0)
    columns = tl.arange(0, BLOCK)
    inside = columns < experts
    values = tl.load(logits + row * experts + columns, mask=inside, other=float("-inf")).to(tl.float32)
    peak = tl.max(values, axis=0)
    total = 0.0
    for i in tl.static_range(K):
        best = tl.max(values, axis=0)
        place = tl.min(tl.where(values == best, columns, BLOCK), axis=0)
        weight = tl.exp(best - peak)
        total += weight
        tl.store(ids + row * K + i, place)
        tl.store(weights + row * K + i, weight)
        values = tl.where(columns == place, float("-inf"), values)
    tl.debug_barrier()
    chosen = tl.arange(0, K)
    tl.store(weights + row * K + chosen, tl.load(weights + row * K + chosen) / total)


def softmax_topk(logits: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids int32 [T, K] and renormalised weights float32 [T, K] of logits [T, E]; K a power of two."""
    tokens, experts = logits.shape
    ids = torch.empty(tokens, count, dtype=torch.int32, device=logits.device)
    weights = torch.empty(tokens, count, dtype=torch.float32, device=logits.device)
    block = triton.next_power_of_2(experts)
    _kernel[(tokens,)](
        logits, ids, weights, experts, K=count, BLOCK=block, num_warps=1 if block <= 256 else 4
    )
    return ids, weights
