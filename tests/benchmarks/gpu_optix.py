"""OptiX against our own CUDA scan and tree on planted gates: time, agreement, and what the enumeration costs.

Run on a GPU: `python tests/benchmarks/gpu_optix.py --out FILE`. Times are back to back on one stream, eager, bf16
hidden state to ids and weights; nothing is captured, because OptiX cannot be.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from spectral_convert import route_arms
from spectral_convert.route_arms import HIDDEN, TOP_K, Planted, hidden_states, plant
from spectral_runtime import cuda
from spectral_runtime.attaching import operators

SIZES = ((64, 1), (4096, 1), (4096, 2), (4096, 4), (65_536, 1), (65_536, 4), (1_048_576, 1))
SPREADS = (1, 8, 32)
BATCHES = (1, 32, 1024, 16_384)


def main() -> None:
    """Measures every size and writes the record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--largest", type=int, default=1 << 30, help="Skip more experts than this.")
    arguments = parser.parse_args()
    record: dict[str, Any] = {
        "gpu": torch.cuda.get_device_name(), "torch": torch.__version__, "hidden": HIDDEN, "top_k": TOP_K, "cells": [],
    }  # fmt: skip
    for experts, levels in SIZES:
        if experts <= arguments.largest:
            measure(plant(experts, levels), record)
            arguments.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
            torch.cuda.empty_cache()


def measure(planted: Planted, record: dict[str, Any]) -> None:
    """All batches of one planted gate."""
    start = time.perf_counter()
    router = route_arms.optix_router(planted)
    torch.cuda.synchronize()
    facts = dict(router.facts) | {"build_s": round(time.perf_counter() - start, 3)}
    record |= {"abi": facts.pop("abi"), "rtcore_version": facts.pop("rtcore_version")}
    twin = cuda.native_router(planted.geometry, planted.rule, planted.bvh, None)
    arms = {
        "optix": route_arms.optix_spheres(planted, native=router),
        "cuda scan": _twin(planted, twin, "scan"),
    }
    if planted.bvh is not None:
        arms["cuda tree"] = _twin(planted, twin, "search")
    for spread in SPREADS:
        arms[f"optix, {spread} threads a token"] = route_arms.optix_spheres(
            planted, native=router, spread=spread
        )
    for batch in BATCHES:
        x = hidden_states(planted, batch, 0)
        cell: dict[str, Any] = {"experts": planted.experts, "levels": planted.levels, "batch": batch, **facts}
        for name, arm in arms.items():
            cell[f"{name} us"] = _microseconds(lambda arm=arm, x=x: arm(x))
        cell |= _work(planted, router, x, arms["cuda scan"](x)[0])
        record["cells"].append(cell)
        print(cell, flush=True)


def _twin(planted: Planted, native: Any, method: str) -> route_arms.Route:
    return route_arms.geometric(planted, method, native=native)


def _work(planted: Planted, router: Any, x: torch.Tensor, truth: torch.Tensor) -> dict[str, float]:
    ids = torch.empty(len(x), TOP_K, dtype=torch.int32, device="cuda")
    scores = torch.empty(len(x), TOP_K, device="cuda")
    work = torch.zeros(len(x), 2, dtype=torch.int32, device="cuda")
    router.candidates(
        x.data_ptr(), HIDDEN, len(x), 2, TOP_K, ids.data_ptr(), False, scores.data_ptr(), 0, work.data_ptr(),
        operators.stream_of(x),
    )  # fmt: skip
    scored, traversed = work.double().T
    same = (ids.sort(1)[0] == truth.sort(1)[0]).all(1).double().mean()
    return {
        "same candidates as cuda": round(float(same), 5),
        "experts scored": round(float(scored.mean()), 1),
        "share of experts": round(float(scored.mean()) / planted.experts, 5),
        "structures traversed": round(float(traversed.clamp(min=0).mean()), 3),
        "tokens scanned": round(float((traversed < 0).double().mean()), 5),
    }


def _microseconds(call: Callable[[], Any], budget: float = 0.06) -> float:
    """Time of one call, back to back between two events."""
    for _ in range(3):
        call()
    torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    torch.cuda.synchronize()
    times = max(3, min(200, int(budget / (time.perf_counter() - start))))
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(times):
        call()
    end.record()
    end.synchronize()
    return round(begin.elapsed_time(end) / times * 1e3, 2)


if __name__ == "__main__":
    main()
