"""Where the best-first search beats the scan on one CPU thread: measures the constants of plugins/cpu/thresholds.h.

Run: `OMP_NUM_THREADS=1 python tests/benchmarks/bench_crossover.py` (about a minute; writes evidence/crossover_cpu.json).
Points in, ids out (the projection is the same for both), k = 8. For every size it prints both times, what a search
visits, and `break-even`: the visits that cost one scan, as a share of the leaf blocks. The budget of a search is that
share; a search that would need more is cut off and scanned.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
from measure import summary, time_interleaved, write_evidence
from planted import plant

from spectral_runtime import _native
from spectral_runtime.bvh import build_bvh

TOKENS = 4096
BLOCK = 16


def measure_case(experts: int, rank: int, kind: str) -> dict[str, Any]:
    g = plant(experts, rank, 1, kind).geometry
    bvh = build_bvh(g)
    router = _native.CpuRouter(
        g.mean, g.projection, g.centres, g.colour, g.beta,
        first=bvh.first, count=bvh.count, experts=bvh.experts, threads=1,
    )  # fmt: skip
    points = np.random.default_rng(1).standard_normal((TOKENS, rank), dtype=np.float32)
    samples = time_interleaved(
        {
            "scan": lambda: router.route_points(points, 8, method="scan"),
            "search": lambda: router.route_points(points, 8, method="search"),
        },
        seconds=0.5,
    )
    work = router.route_points(points, 8, method="search")[2]
    scan, search = (summary(samples[name], TOKENS)["thread_us"] for name in ("scan", "search"))
    visits = (work.nodes + work.leaves) / TOKENS
    even = scan / (search / visits) / (experts / BLOCK)
    return {
        "experts": experts, "rank": rank, "data": kind, "scan_us": scan, "search_us": search,
        "visits": round(visits, 1), "break_even_share": round(even, 4),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--experts", type=int, nargs="+", default=[1024, 2048, 4096, 8192, 16384, 32768, 65536]
    )
    parser.add_argument("--ranks", type=int, nargs="+", default=[3, 6, 12])
    parser.add_argument("--no-evidence", action="store_true")
    args = parser.parse_args()
    cases = []
    for rank in args.ranks:
        for experts in args.experts:
            for kind in ("equal radii", "radii"):
                case = measure_case(experts, rank, kind)
                cases.append(case)
                print(
                    f"R={rank:2} E={experts:6} {kind:12} scan {case['scan_us']:8.3f} us  search {case['search_us']:8.3f} us"
                    f"  visits {case['visits']:7.1f}  break-even {case['break_even_share']:.4f}"
                )
    shares = [case["break_even_share"] for case in cases if case["experts"] >= 4096]
    print(f"median break-even share from 4096 experts on: 1/{1 / np.median(shares):.0f}")
    if not args.no_evidence:
        write_evidence(
            "crossover_cpu", {"k": 8, "tokens": TOKENS, "threads": 1, "clock": "thread", "cases": cases}
        )


if __name__ == "__main__":
    main()
