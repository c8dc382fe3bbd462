"""Routing on one CPU thread, hidden states in and expert ids out: ours against the dense gate and search trees.

Run: `OMP_NUM_THREADS=1 python tests/benchmarks/bench_route_cpu.py` (about three minutes; writes
evidence/route_cpu.json). D = 2048, k = 8, float32; the projection is inside every geometric arm's clock.

Floors, written before tuning, for one core of 3.7 GHz that multiplies and adds 32 floats a cycle and reads
20 GB/s from memory, 60 GB/s from the L3 cache:
  reading a hidden state    8 KiB: 0.14 us from L3, 0.4 us from memory, whatever the router
  projection                R * 2048 / 32 cycles: R=3 0.05 us, R=12 0.21 us, R=24 0.41 us
  scan                      E * R / 32 cycles:    E=64 0.002 us, E=4096 R=3 0.10 us, R=12 0.42 us, R=24 0.83 us
  dense gate                E * 2048 / 32 cycles: E=64 1.1 us, E=4096 71 us, E=65536 1.1 ms (weights from memory)
Predictions from these: E=64 at least 3x the dense gate at R=3 (its top-k costs more than its product);
E=4096 R=3 0.6 us and 120x; a k-d tree of 2 to 4 us a query loses 4x at E=4096; at E=65536 the search beats the
scan for R=3 only, and R=24 wins over the dense gate by the ratio of the ranks, not more.
"""

from __future__ import annotations

import argparse
import itertools
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from measure import summary, time_interleaved, write_evidence
from planted import Planted, lifted, plant, recall
from pykdtree.kdtree import KDTree
from scipy.spatial import cKDTree

from spectral_runtime import _native
from spectral_runtime.bvh import build_bvh
from spectral_runtime.geometry import directions

K = 8
BATCHES = 4
CLOCKS = {"wall": "median_us", "p90": "p90_us", "thread": "thread_us"}
Arm = Callable[[int], np.ndarray]
"""Routes batch number i and returns its ids [T, k]."""


def dense_arm(layer: Planted) -> Arm:
    rows, bias, states = (torch.from_numpy(array) for array in (*layer.gate(), layer.hidden))

    def route(i: int) -> np.ndarray:
        logits = torch.nn.functional.linear(states[i], rows, bias)
        return torch.topk(logits, K, dim=1).indices.numpy()

    return route


def projector(layer: Planted) -> Callable[[int], torch.Tensor]:
    """Points of batch i by torch's own product, for the arms that are not ours."""
    projection, mean, states = (
        torch.from_numpy(array) for array in (layer.geometry.projection, layer.geometry.mean, layer.hidden)
    )
    offset = -projection @ mean
    return lambda i: torch.nn.functional.linear(states[i], projection, offset)


def rank_arm(layer: Planted) -> Arm:
    """The same low rank without geometry: two dense products."""
    points = projector(layer)
    rows, beta = torch.from_numpy(directions(layer.geometry)), torch.from_numpy(layer.geometry.beta)

    def route(i: int) -> np.ndarray:
        logits = torch.nn.functional.linear(points(i), rows, beta)
        return torch.topk(logits, K, dim=1).indices.numpy()

    return route


def tree_arms(layer: Planted) -> dict[str, Arm]:
    """k-d trees over the (lifted) centres."""
    project = projector(layer)
    places = lifted(layer.geometry)
    extra = places.shape[1] - layer.geometry.rank

    def points(i: int) -> np.ndarray:
        flat = project(i).numpy()
        return np.pad(flat, ((0, 0), (0, extra))) if extra else flat

    scipy_tree, py_tree = cKDTree(places), KDTree(places.astype(np.float32), leafsize=16)
    return {
        "cKDTree": lambda i: scipy_tree.query(points(i), K)[1],
        "pykdtree": lambda i: py_tree.query(points(i), K)[1],
    }


def our_arms(layer: Planted) -> dict[str, Arm]:
    g = layer.geometry
    bvh = build_bvh(g, threads=1)
    router = _native.CpuRouter(
        g.mean, g.projection, g.centres, g.colour, g.beta,
        first=bvh.first, count=bvh.count, experts=bvh.experts, threads=1,
    )  # fmt: skip
    methods: dict[str, Any] = {"ours": "auto", "flat scan": "scan", "search": "search"}
    return {
        name: lambda i, how=how: router.route(layer.hidden[i], K, method=how)[0]
        for name, how in methods.items()
    }


def arms_of(layer: Planted) -> dict[str, Arm]:
    experts, rank = layer.geometry.experts, layer.geometry.rank
    arms = our_arms(layer)
    if experts > 4096 and rank > 3:
        del arms["search"]  # known to lose; `ours` includes its fall-back
    arms["dense gate"] = dense_arm(layer)
    arms["rank-R dense"] = rank_arm(layer)
    if rank == 3 or experts <= 4096:  # in more dimensions a k-d tree degenerates to a slow scan
        arms |= tree_arms(layer)
    return arms


def measure_case(experts: int, rank: int, batch: int, kind: str, seconds: float) -> dict[str, Any]:
    layer = plant(experts, rank, batch, kind, batches=BATCHES)
    arms = arms_of(layer)
    turns = {name: itertools.cycle(range(BATCHES)) for name in arms}
    calls = {name: lambda arm=arm, name=name: arm(next(turns[name])) for name, arm in arms.items()}
    samples = time_interleaved(calls, seconds=seconds)
    rows = {
        name: {**summary(samples[name], batch), "recall": round(recall(arm(0), layer.truth), 5)}
        for name, arm in arms.items()
    }
    case = {"experts": experts, "rank": rank, "batch": batch, "data": kind, "arms": rows}
    return {**case, "ratios": ratios(rows)}


def ratios(rows: dict[str, dict[str, float]]) -> dict[str, float]:
    """How many times faster ours is: by medians of thread time, which a busy machine bends least."""
    ours = rows["ours"]["thread_us"]
    out = {f"over {name}": row["thread_us"] / ours for name, row in rows.items() if name != "ours"}
    trees = [row["thread_us"] for name, row in rows.items() if name in ("cKDTree", "pykdtree")]
    if trees:
        out["over best tree"] = min(trees) / ours
    return {name: round(value, 2) for name, value in out.items()}


def show(case: dict[str, Any]) -> None:
    print(f"\nE={case['experts']} R={case['rank']} batch={case['batch']} data={case['data']}")
    for name, row in case["arms"].items():
        times = "  ".join(f"{label} {row[key]:10.3f}" for label, key in CLOCKS.items())
        ratio = case["ratios"].get(f"over {name}", 1.0)
        print(f"  {name:13} us/token: {times}  recall {row['recall']:.4f}  ours {ratio:8.2f}x")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--experts", type=int, nargs="+", default=[64, 256, 4096, 65536])
    parser.add_argument("--ranks", type=int, nargs="+", default=[3, 12, 24])
    parser.add_argument("--batches", type=int, nargs="+", default=[256, 1])
    parser.add_argument("--data", nargs="+", default=["equal radii", "radii"])
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--no-evidence", action="store_true")
    args = parser.parse_args()
    if os.environ.get("OMP_NUM_THREADS") != "1":
        parser.error("set OMP_NUM_THREADS=1: every arm must run on one thread")
    torch.set_num_threads(1)
    cases = []
    for experts in args.experts:
        for rank in args.ranks:
            for batch in args.batches:
                for kind in args.data:
                    cases.append(measure_case(experts, rank, batch, kind, args.seconds))
                    show(cases[-1])
    if not args.no_evidence:
        write_evidence(
            "route_cpu", {"k": K, "hidden": 2048, "threads": 1, "dtype": "float32", "cases": cases}
        )


if __name__ == "__main__":
    main()
