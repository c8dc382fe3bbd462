"""Routers beyond protobuf's 2 GB at real size: written, checked, loaded and run by ONNX Runtime with our operator and without.

python tests/benchmarks/bench_export_large.py FOLDER    (2.7 GB there, 9 GB of memory; the folder's files are removed)
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

sys.path.insert(0, str(Path(__file__).parents[1]))
from pico_bundles import make_layer

from spectral_convert.export.files import save_model
from spectral_convert.export.graphs import routers_model
from spectral_convert.export.routes import Route, make_route
from spectral_runtime.onnxruntime import register

EVIDENCE = Path(__file__).parent / "evidence" / "export_large.json"
LAYERS, EXPERTS, HIDDEN, CANDIDATES, TOKENS = 5, 65_536, 2048, 64, 4


class Draws:
    """Normal numbers, drawn as float32."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(0)

    def standard_normal(self, size: Any) -> Any:
        return self.rng.standard_normal(size, dtype=np.float32)


def route_of(draws: Draws, number: int) -> Route:
    """One layer; scaled so that no score drowns the others in float32."""
    layer = make_layer(
        draws, experts=EXPERTS, hidden=HIDDEN, levels=4, top_k=8, candidates=CANDIDATES, gate_rows=True
    )
    entry = dataclasses.replace(layer.entry, path=f"model.layers.{number}.mlp.gate")
    layer = dataclasses.replace(layer, entry=entry)
    layer.geometry.projection[:] /= np.float32(HIDDEN)
    layer.geometry.common[:] /= np.float32(HIDDEN)
    gate = layer.gate_weight / np.float32(HIDDEN**0.5), layer.gate_bias
    return make_route(
        layer, mode="prefilter", candidates=CANDIDATES, gate=gate, choice_bias=layer.choice_bias
    )


def answers(path: Path, states: dict[str, Any], ours: bool) -> tuple[list[Any], float]:
    """What a session gives, and the seconds that loading and one run took."""
    start, options = time.monotonic(), ort.SessionOptions()
    if ours:
        register(options)
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return session.run(None, states), round(time.monotonic() - start, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--evidence", type=Path, default=EVIDENCE)
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    path, draws = given.folder / "routers.onnx", Draws()
    save_model(routers_model([route_of(draws, number) for number in range(LAYERS)]), path)
    beside = given.folder / "routers.onnx.data"
    states = {f"hidden.{i}": draws.standard_normal((TOKENS, HIDDEN)) for i in range(LAYERS)}
    (plain, plain_s), (ours, ours_s) = (answers(path, states, ours) for ours in (False, True))
    record = {
        "command": "python tests/benchmarks/bench_export_large.py FOLDER",
        "protocol": f"{LAYERS} layers of {EXPERTS} experts, D = {HIDDEN}, prefilter, C = {CANDIDATES}, {TOKENS} tokens; "
        f"ONNX Runtime {ort.__version__}; seconds to load and run once",
        "rows": [
            {"model bytes": path.stat().st_size, "data bytes": beside.stat().st_size, "plain s": plain_s, "ours s": ours_s,
             "layers with equal ids": sum(bool((a == b).all()) for a, b in zip(plain[::2], ours[::2], strict=True))}
        ],
    }  # fmt: skip
    given.evidence.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(record["rows"][0]))
    path.unlink()
    beside.unlink()


if __name__ == "__main__":
    main()
