"""The modelled cost of routing a token, by target: what a budget is spent against."""

from __future__ import annotations

from typing import Literal

Target = Literal["cpu", "cuda"]

SMALL = 512
"""On a GPU, gates of fewer experts are never slower than filtering them: one launch either way
(`tests/benchmarks/notes_gpu.md`, table of prefilter against dense)."""


def dense_cost(target: Target, hidden: int, experts: int) -> float:
    """Multiply-adds a token of the gate: D E."""
    del target
    return float(hidden * experts)


def prefilter_cost(target: Target, hidden: int, experts: int, rank: int, candidates: float) -> float:
    """Multiply-adds a token of a filter: D R for the points, E R for the scores, D C for the candidates' logits.

    On the CPU time follows these (`bench_route_cpu.py`). On a GPU a small gate is bound by its launch: infinite there.
    """
    if target == "cuda" and experts < SMALL:
        return float("inf")
    return hidden * rank + experts * rank + hidden * candidates
