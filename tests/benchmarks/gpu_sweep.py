"""Times the fused kernels with every tile and cluster shape: what plugins/cuda/launch_plan.cpp is chosen from."""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path

import torch

from spectral_convert import route_arms
from spectral_convert.device_timing import Arm, measure
from spectral_runtime import cuda
from spectral_runtime.errors import SpectralError

GATE = list(itertools.product((8, 64, 128), (1, 2, 4, 8, 16), (0,)))
ROUTE = [(0, splits, 0) for splits in (1, 2, 4, 8)]


def sweep(planted, batch: int, plans, make) -> dict[str, float]:
    inputs = [route_arms.hidden_states(planted, batch, seed) for seed in range(4)]
    arms = {}
    for plan in plans:
        route = make(plan)
        try:
            route(inputs[0])
        except SpectralError:
            continue
        arms[str(plan)] = Arm(lambda number, route=route: route(inputs[number]))
    found = measure(arms, repeats=5, budget=0.05)
    return {name: kinds["graph"].median for name, kinds in found.items()}


def main() -> None:
    out, results = Path(sys.argv[1]), []
    with torch.inference_mode():
        for experts in (64, 256, 512):
            planted = route_arms.plant(experts, 1)
            for batch in (1, 256, 1024, 4096, 65_536):
                times = sweep(planted, batch, GATE, lambda plan: route_arms.fused_gate(planted, plan))
                results.append({"kernel": "gate", "experts": experts, "batch": batch, "us": times})
                best = sorted(times, key=times.get)[:4]
                print("gate", experts, batch, {name: round(times[name], 2) for name in best}, flush=True)
        for experts, method in (
            (64, "rows"),
            (4096, "scan"),
            (4096, "search"),
            (65_536, "search"),
            (1 << 20, "search"),
        ):
            planted = route_arms.plant(experts, 1)
            native = cuda.native_router(planted.geometry, planted.rule, planted.bvh, None)
            for batch in (1, 1024, 4096, 65_536):
                times = sweep(
                    planted,
                    batch,
                    ROUTE,
                    lambda plan: route_arms.geometric(planted, method, plan, native=native),
                )
                results.append({"kernel": method, "experts": experts, "batch": batch, "us": times})
                print(method, experts, batch, {name: round(t, 2) for name, t in times.items()}, flush=True)
            out.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
