"""Softmax, top-k and renormalisation of rows of logits in one Triton kernel: the fused peer of the benchmark."""

from __future__ import annotations

import torch
import triton  # type: ignore[import-not-found, unused-ignore]
import triton.language as tl  # type: ignore[import-not-found, unused-ignore]


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _kernel(logits, ids, weights, experts, sizes: tl.constexpr):  # type: ignore[no-untyped-def]
    K: tl.constexpr = sizes // 65_536
    BLOCK: tl.constexpr = sizes % 65_536
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
        logits, ids, weights, experts, sizes=count * 65_536 + block, num_warps=1 if block <= 256 else 4
    )
    return ids, weights
