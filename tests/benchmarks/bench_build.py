"""Time of building the BVH over one million spheres (and fewer), with one thread and with two.

Run: `python tests/benchmarks/bench_build.py` (under a minute; writes evidence/build_cpu.json).

Floor and prediction, written before tuning: a level of the tree reads and writes 1 000 000 rows of 16 bytes and
ids of 4, twice: 80 MB, 8 ms at 10 GB/s; 16 levels 0.13 s. Binning costs about 25 ns and sorting 60 ns an expert and
level: 0.4 s + 0.4 s on one thread. Target: under 2 s on two cores.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np
from measure import write_evidence
from planted import plant

from spectral_runtime.bvh import build_bvh


def measure_case(experts: int, rank: int, threads: int, rounds: int) -> dict[str, Any]:
    geometry = plant(experts, rank, 1, "radii").geometry
    seconds, processor = [], []
    for _ in range(rounds):
        begin, busy = time.perf_counter(), time.process_time()
        bvh = build_bvh(geometry, threads=threads)
        seconds.append(time.perf_counter() - begin)
        processor.append(time.process_time() - busy)
    return {
        "experts": experts, "rank": rank, "threads": threads, "nodes": bvh.nodes, "rounds": rounds,
        "median_s": round(float(np.median(seconds)), 4), "p90_s": round(float(np.percentile(seconds, 90)), 4),
        "min_s": round(min(seconds), 4), "median_processor_s": round(float(np.median(processor)), 4),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--no-evidence", action="store_true")
    args = parser.parse_args()
    cases = []
    for experts, rank in ((64, 12), (4096, 3), (65536, 3), (65536, 12), (1_000_000, 3)):
        for threads in (1, 2):
            case = measure_case(experts, rank, threads, args.rounds)
            cases.append(case)
            print(
                f"E={experts:8} R={rank:2} threads={threads}  median {case['median_s']:.4f} s"
                f"  p90 {case['p90_s']:.4f} s  min {case['min_s']:.4f} s"
                f"  processor {case['median_processor_s']:.4f} s"
            )
    if not args.no_evidence:
        write_evidence("build_cpu", {"cases": cases})


if __name__ == "__main__":
    main()
