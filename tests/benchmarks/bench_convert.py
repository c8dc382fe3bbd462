"""Wall time and peak memory of one whole `spectral convert`, and the time to load its bundle.

python tests/benchmarks/bench_convert.py ../shared/models/olmoe-64e --calibration ../shared/data/calibration

Target for 250 000 tokens on two cores: under 3 minutes and 2.5 GB, bundle under 3 MB, loaded in 50 ms.
Writes `evidence/convert.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from spectral_runtime import load_bundle

EVIDENCE = Path(__file__).parent / "evidence" / "convert.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--calibration", required=True)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "bundle"
        command = [sys.executable, "-m", "spectral_convert", "convert", options.model, "--out", str(out)]
        settings = [
            "--calibration",
            options.calibration,
            "--levels",
            "4",
            "--colour",
            "12",
            "--mode",
            "prefilter",
        ]
        start = time.perf_counter()
        subprocess.run([*command, *settings], check=True)
        wall = time.perf_counter() - start
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        loads = []
        for _ in range(21):
            start = time.perf_counter()
            load_bundle(out)
            loads.append(1000 * (time.perf_counter() - start))
        size = sum(file.stat().st_size for file in (out / "spectral").rglob("*") if file.is_file())
    row = {
        "model": Path(options.model).name,
        "wall_s": round(wall, 1),
        "processor_s": round(used.ru_utime + used.ru_stime, 1),
        "peak_MB": round(used.ru_maxrss / 1000),
        "bundle_kB": round(size / 1000),
        "load_ms": round(statistics.median(loads), 1),
    }
    record = {
        "command": "python tests/benchmarks/bench_convert.py",
        "protocol": "250 000 calibration tokens, evaluation included; bundle without gate rows",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}",
        "rows": [row],
    }
    EVIDENCE.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(row)


if __name__ == "__main__":
    main()
