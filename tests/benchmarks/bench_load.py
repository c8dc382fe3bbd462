"""Times `load_bundle`, digests and validation included, on bundles of real shapes.

PYTHONPATH=tests python tests/benchmarks/bench_load.py
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from pico_bundles import make_bundle

from spectral_runtime.bundle import load_bundle, write_bundle

SHAPES: dict[str, dict[str, Any]] = {
    "6 layers, E 64, D 256, R 12": {
        "layers": 6,
        "experts": 64,
        "hidden": 256,
        "levels": 4,
        "colour": 0,
        "top_k": 8,
    },
    "6 layers, E 64, D 256, R 24": {
        "layers": 6,
        "experts": 64,
        "hidden": 256,
        "levels": 4,
        "colour": 12,
        "top_k": 8,
    },
    "48 layers, E 128, D 2048, R 24": {
        "layers": 48,
        "experts": 128,
        "hidden": 2048,
        "levels": 4,
        "colour": 12,
    },
    "1 layer, E 65536, D 256, R 12": {"experts": 65536, "hidden": 256, "levels": 4, "colour": 0},
    "1 layer, E 65536, D 256, R 24, gate rows": {
        "experts": 65536,
        "hidden": 256,
        "levels": 4,
        "colour": 12,
        "gate_rows": True,
    },
}
ROUNDS = 11


def time_load(folder: Path) -> list[float]:
    """Milliseconds of each round; the files are in the page cache."""
    times = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        load_bundle(folder)
        times.append(1e3 * (time.perf_counter() - start))
    return times


def main() -> None:
    print(f"{'bundle':44} {'MB':>8} {'median ms':>10} {'p90 ms':>8}")
    for name, options in SHAPES.items():
        with tempfile.TemporaryDirectory() as folder:
            bundle = write_bundle(Path(folder) / "b", *make_bundle(np.random.default_rng(0), **options))
            size = sum(entry.bytes for entry in bundle.manifest.files.values()) / 1e6
            times = sorted(time_load(bundle.path))
            print(f"{name:44} {size:8.2f} {statistics.median(times):10.1f} {times[int(0.9 * ROUNDS)]:8.1f}")


if __name__ == "__main__":
    main()
