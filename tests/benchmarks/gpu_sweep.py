"""Times the fused kernels with every tile and cluster shape, and scan against tree: what plugins/cuda/launch_plan.cpp
and plugins/cuda/thresholds.h are chosen from. `python gpu_sweep.py OUT.json [gates] [routers]`."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch

from spectral_convert import route_arms
from spectral_convert.bench_route import machine
from spectral_convert.device_timing import Arm, measure
from spectral_convert.route_arms import Planted, Route
from spectral_runtime import cuda

GATES = (64, 128, 256, 384, 512, 896)
ROUTERS = ((1024, 1), (2048, 1), (4096, 1), (16_384, 1), (65_536, 1), (65_536, 4), (1 << 20, 1))
BATCHES = (1, 32, 256, 1024, 4096, 65_536)


def plans(batch: int) -> Iterator[tuple[int, int]]:
    """Tiles and clusters worth a try: about a wave of blocks, or one block a tile."""
    for tile, cluster in itertools.product((8, 16, 32), (1, 2, 4, 8, 16)):
        blocks = -(-batch // tile) * cluster
        if (blocks <= 264 and (cluster >= 8 or blocks >= 64)) or (cluster <= 2 and tile >= 32 <= batch):
            yield tile, cluster


def record(results: list[dict], kernel: str, planted: Planted, batch: int, routes: dict[str, Route]) -> None:
    inputs = [route_arms.hidden_states(planted, batch, seed) for seed in range(4)]
    arms = {}
    for name, route in routes.items():
        try:
            route(inputs[0])
        except Exception as error:  # a plan beyond the GPU's shared memory
            print(kernel, planted.experts, batch, name, str(error)[:80], flush=True)
            continue
        arms[name] = Arm(lambda number, route=route: route(inputs[number]))
    found = measure(arms, repeats=5, budget=0.02)
    times = {name: kinds["graph"].median for name, kinds in found.items() if kinds["graph"]}
    results.append(
        {"kernel": kernel, "experts": planted.experts, "levels": planted.levels, "batch": batch, "us": times}
    )
    best = sorted(times, key=lambda name: times[name])[:7]
    print(kernel, planted.experts, planted.levels, batch, {n: round(times[n], 2) for n in best}, flush=True)


def sweep_gates(results: list[dict], save: Callable[[], None]) -> None:
    for experts in GATES:
        planted = route_arms.plant(experts, 1)
        for batch in BATCHES:
            routes = {str(plan): route_arms.fused_gate(planted, plan) for plan in plans(batch)}
            routes["chosen"] = route_arms.fused_gate(planted)
            routes["split"] = route_arms.split_gate(planted)
            routes["cuBLAS + Triton"] = route_arms.matrix_and_fused_topk(planted)
            record(results, "gate", planted, batch, routes)
        save()


def sweep_routers(results: list[dict], save: Callable[[], None]) -> None:
    for experts, levels in ROUTERS:
        planted = route_arms.plant(experts, levels)
        native = cuda.native_router(planted.geometry, planted.rule, planted.bvh, None)
        make = partial(route_arms.geometric, planted, native=native)
        for batch in BATCHES:
            routes = {
                f"{method} {tile}": make(method, (tile, 1))
                for method in ("scan", "search", "rows")
                for tile in (8, 32)
                if experts * batch <= 1 << 32 or method == "search"
                if method != "rows" or experts <= cuda.MAX_ROW
                if tile == 8 or batch >= 1024
            }
            record(results, "route", planted, batch, routes)
        save()


def main() -> None:
    results: list[dict] = []
    target, wanted = Path(sys.argv[1]), sys.argv[2:] or ["gates", "routers"]

    def save() -> None:
        target.write_text(json.dumps({"machine": machine(), "rows": results}, indent=1) + "\n")

    with torch.inference_mode():
        if "gates" in wanted:
            sweep_gates(results, save)
        if "routers" in wanted:
            sweep_routers(results, save)


if __name__ == "__main__":
    main()
