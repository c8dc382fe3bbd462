"""Times BvhRoute in ONNX Runtime on the CPU: our operator, the model's own function, and the plain gate.

python tests/benchmarks/bench_onnxruntime.py [--out FILE]
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

sys.path.insert(0, str(Path(__file__).parents[1]))
from pico_bundles import make_layer

from spectral_convert.export.graphs import routers_model
from spectral_convert.export.routes import make_route
from spectral_runtime.geometry import directions
from spectral_runtime.onnxruntime import register

SIZES = ((64, 2048, 8, 16), (128, 2048, 8, 24), (4096, 512, 8, 64))
"""Experts, hidden, K, C."""
BATCHES = (1, 8, 32)


def session(route: Any, native: bool) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    if native:
        register(options)
    return ort.InferenceSession(routers_model([route]).SerializeToString(), options)


def median_us(run: Any, feeds: dict[str, np.ndarray], repeats: int) -> tuple[float, float]:
    taken = []
    for _ in range(repeats):
        start = time.perf_counter()
        run(None, feeds)
        taken.append(time.perf_counter() - start)
    return float(np.median(taken) * 1e6), float(np.percentile(taken, 90) * 1e6)


def rows_of(
    rng: np.random.Generator, experts: int, hidden: int, top_k: int, count: int
) -> list[dict[str, Any]]:
    layer = make_layer(
        rng, experts=experts, hidden=hidden, levels=4, colour=0, top_k=top_k, candidates=count, gate_rows=True
    )
    # A gate that the geometry explains but for noise, with logits of a few units.
    geometry = layer.geometry
    geometry.projection[:] /= np.float32(4 * hidden**0.5)
    explained = directions(geometry) @ geometry.projection + geometry.common
    gate = (explained + rng.standard_normal(explained.shape) / hidden**0.5).astype(np.float32), None
    rows = []
    for mode in ("dense", "prefilter", "geometric"):
        route = make_route(layer, mode=mode, candidates=count, gate=gate, choice_bias=None)  # type: ignore[arg-type]
        plain, native = session(route, False), session(route, True)
        for batch in BATCHES:
            states = (geometry.mean + rng.standard_normal((batch, hidden))).astype(np.float32)
            feeds = {"hidden": states}
            same = float((plain.run(None, feeds)[0] == native.run(None, feeds)[0]).mean())
            repeats = 11 if batch * experts > 100_000 else 101
            for arm, run in (("function", plain.run), ("operator", native.run)):
                median, p90 = median_us(run, feeds, repeats)
                rows.append(
                    {"experts": experts, "hidden": hidden, "top_k": top_k, "candidates": count, "mode": mode,
                     "batch": batch, "arm": arm, "median_us": round(median, 1), "p90_us": round(p90, 1),
                     "same_ids": same}
                )  # fmt: skip
                print(rows[-1])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", default="tests/benchmarks/evidence/onnxruntime_cpu.json")
    rng = np.random.default_rng(0)
    rows = [row for sizes in SIZES for row in rows_of(rng, *sizes)]
    record = {
        "command": "python tests/benchmarks/bench_onnxruntime.py",
        "protocol": "hidden state to ids and weights, float32, one thread, random geometry R = 12, shared 2-core CPU",
        "versions": {"onnxruntime": ort.__version__, "python": platform.python_version()},
        "rows": rows,
    }
    Path(parser.parse_args().out).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
