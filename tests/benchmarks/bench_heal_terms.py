"""What the terms and rates of a healing are worth: short healings on the CPU, judged on text held back from training.

python tests/benchmarks/bench_heal_terms.py ../shared/models/olmoe-32e --calibration ../shared/data/calibration

Every arm starts from the same `geometric` bundle of two levels (6 dimensions) and trains all weights for the same steps on
real text of the fit documents. Writes `heal_terms.json`.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch

from spectral_convert.convert import convert_checkpoint
from spectral_convert.healing import heal_bundle

EVIDENCE = Path(__file__).parent / "evidence" / "heal_terms.json"
ALONE: dict[str, Any] = {"router_weight": 0.0, "states_weight": 0.0}
ARMS: dict[str, dict[str, Any]] = {
    "divergence alone, lr 0.01": {**ALONE, "lr": 0.01},
    "divergence alone": ALONE,
    "and routers": {"states_weight": 0.0},
    "and states": {"router_weight": 0.0},
    "and both (default)": {},
    "both, weights_lr 0.001": {"weights_lr": 1e-3},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--calibration", required=True)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--evidence", type=Path, default=EVIDENCE)
    options = parser.parse_args()
    record: dict[str, Any] = {
        "command": "python tests/benchmarks/bench_heal_terms.py MODEL --calibration TEXT",
        "protocol": f"{Path(options.model).name}, geometric, 6 dimensions, all weights, {options.steps} steps of 2048 tokens, "
        f"float32 on the CPU, torch {torch.__version__}; divergence from the original in nats a token on 8192 tokens held back",
        "rows": [],
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        convert_checkpoint(
            options.model, out=folder / "bundle", mode="geometric", levels=2, colour=0,
            calibration=options.calibration, tokens=200_000,
        )  # fmt: skip
        for number, (name, settings) in enumerate(ARMS.items()):
            heal = heal_bundle(
                folder / "bundle", out=folder / str(number), scope="all", steps=options.steps, sampled=0.0, checks=6,
                sequence_length=512, **settings,
            ).record  # fmt: skip
            found = [check["divergence"] for check in heal["checks"]]
            row = {"arm": name, "before": found[0], "halfway": found[len(found) // 2], "after": found[-1]}
            record["rows"].append({key: v if key == "arm" else round(v, 4) for key, v in row.items()})
            print(json.dumps(record["rows"][-1]), flush=True)
            options.evidence.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
