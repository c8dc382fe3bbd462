"""Times the fused kernels with every tile and cluster shape: what plugins/cuda/launch_plan.cpp is chosen from."""

from __future__ import annotations

import itertools
import json
import sys
from functools import partial
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
    found = measure(arms, repeats=5, budget=0.03)
    return {name: kinds["graph"].median for name, kinds in found.items()}


def sweep_gates(results: list[dict]) -> None:
    for experts in (64, 256, 512):
        planted = route_arms.plant(experts, 1)
        make = partial(route_arms.fused_gate, planted)
        for batch in (1, 256, 1024, 4096, 65_536):
            record(results, "gate", planted, batch, GATE, make)


def sweep_routers(results: list[dict]) -> None:
    for experts, method in (
        (64, "rows"),
        (4096, "scan"),
        (4096, "search"),
        (65_536, "search"),
        (1 << 20, "search"),
    ):
        planted = route_arms.plant(experts, 1)
        native = cuda.native_router(planted.geometry, planted.rule, planted.bvh, None)
        make = partial(route_arms.geometric, planted, method, native=native)
        for batch in (1, 1024, 4096, 65_536):
            record(results, method, planted, batch, ROUTE, make)


def record(results: list[dict], kernel: str, planted, batch: int, plans, make) -> None:
    times = sweep(planted, batch, plans, make)
    results.append({"kernel": kernel, "experts": planted.experts, "batch": batch, "us": times})
    best = sorted(times, key=times.get)[:4]
    print(kernel, planted.experts, batch, {name: round(times[name], 2) for name in best}, flush=True)


def main() -> None:
    results: list[dict] = []
    with torch.inference_mode():
        sweep_gates(results)
        sweep_routers(results)
    Path(sys.argv[1]).write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
