"""Device timing: arms interleaved, eager and in CUDA graphs, with a warm and a flushed L2; medians and 90th percentiles."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

Call = Callable[[int], Any]
"""Routes the input buffer of this number; an arm rotates among several."""

BUFFERS = 4
GRAPH_CALLS = 20
FLUSH_BYTES = 128 << 20


@dataclass(frozen=True, slots=True)
class Spread:
    """Median and 90th percentile of repeated times, in microseconds."""

    median: float
    p90: float
    samples: int

    @classmethod
    def of(cls, seconds: list[float]) -> Spread | None:
        """None when nothing was measured."""
        if not seconds:
            return None
        micro = np.array(seconds) * 1e6
        return cls(round(float(np.median(micro)), 3), round(float(np.percentile(micro, 90)), 3), len(seconds))


@dataclass(slots=True)
class Arm:
    """One way to route, and how it is timed."""

    call: Call
    capturable: bool = True
    calls: int = GRAPH_CALLS
    many: torch.cuda.CUDAGraph | None = None
    """`calls` calls, rotating among the buffers."""
    single: torch.cuda.CUDAGraph | None = None


def prepare(arm: Arm) -> float:
    """Warms an arm up and captures it; returns a rough time of one call in seconds."""
    for number in range(3):
        arm.call(number % BUFFERS)
    torch.cuda.synchronize()
    start = time.perf_counter()
    arm.call(0)
    torch.cuda.synchronize()
    rough = time.perf_counter() - start
    arm.calls = GRAPH_CALLS if rough < 5e-4 else 2
    if arm.capturable:
        arm.many, arm.single = _captured(arm.call, arm.calls), _captured(arm.call, 1)
    return rough


def _captured(call: Call, calls: int) -> torch.cuda.CUDAGraph:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for number in range(calls):
            call(number % BUFFERS)
    return graph


def measure(
    arms: Mapping[str, Arm], *, repeats: int, budget: float = 0.25
) -> dict[str, dict[str, Spread | None]]:
    """Times every arm: `graph` warm, `cold` (L2 flushed, one call a graph) and `eager` wall time, per call.

    Args:
        arms: by name; each is prepared here.
        repeats: of every kind, fewer for slow arms.
        budget: seconds an arm may take for each kind.
    """
    rough = {name: prepare(arm) for name, arm in arms.items()}
    flush = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device="cuda")
    times: dict[str, dict[str, list[float]]] = {name: {"graph": [], "cold": [], "eager": []} for name in arms}
    for turn in range(repeats):
        for name, arm in arms.items():
            if turn * rough[name] * arm.calls < budget or turn < 3:
                _sample(arm, times[name], flush)
    return {
        name: {kind: Spread.of(values) for kind, values in kinds.items()} for name, kinds in times.items()
    }


def _sample(arm: Arm, times: dict[str, list[float]], flush: torch.Tensor) -> None:
    if arm.many is not None and arm.single is not None:
        times["graph"].append(_on_device(arm.many.replay) / arm.calls)
        flush.zero_()
        times["cold"].append(_on_device(arm.single.replay))
    torch.cuda.synchronize()
    start = time.perf_counter()
    for number in range(BUFFERS):
        arm.call(number)
    torch.cuda.synchronize()
    times["eager"].append((time.perf_counter() - start) / BUFFERS)


def _on_device(work: Callable[[], None]) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    begin.record()
    work()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) * 1e-3


def ceilings() -> dict[str, float]:
    """What this GPU does at best: bytes/s of a copy (read plus written), bf16 FLOP/s, an empty launch in a graph."""
    source = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    a, b = (torch.randn(8192, 8192, device="cuda").bfloat16() for _ in range(2))
    tiny = torch.zeros(1, device="cuda")
    arms = {
        "copy": Arm(lambda _: target.copy_(source)),
        "matrix": Arm(lambda _: a @ b),
        "launch": Arm(lambda _: tiny.add_(1.0)),
    }
    found = measure(arms, repeats=20)
    seconds = {
        name: kinds["graph"].median * 1e-6 for name, kinds in found.items() if kinds["graph"] is not None
    }
    return {
        "copy_bytes_per_s": 2 * source.numel() / seconds["copy"],
        "bf16_flop_per_s": 2 * 8192**3 / seconds["matrix"],
        "launch_s": seconds["launch"],
    }
