"""Times healing steps on a GPU: tokens a second by scope, eager and compiled, teacher and student together.

python tests/benchmarks/gpu_heal_speed.py ../shared/models/olmoe-64e --calibration ../shared/data/calibration

Random tokens; 30 steps after 4 that warm up (and compile). Writes `heal_speed_h100.json`.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from spectral_convert.convert import convert_checkpoint
from spectral_convert.heal.checkpoint import Checkpoints
from spectral_convert.heal.settings import HealSettings
from spectral_convert.heal.student import make_student
from spectral_convert.heal.train import Trainer, compiled_layers
from spectral_convert.heal.windows import FitText
from spectral_convert.workdir import WorkDir
from spectral_runtime.attaching.load import load_base_of

EVIDENCE = Path(__file__).parent / "evidence"
ARMS = (("geometry", False), ("all", False), ("geometry", True), ("all", True))
WARM, STEPS, LENGTH = 4, 30, 512


def measure(bundle: Any, scope: Any, compiled: bool, folder: Path) -> dict[str, Any]:
    teacher, _ = load_base_of(bundle, None, dtype="auto", device="cuda")
    settings = HealSettings(
        steps=10**6, scope=scope, mode="geometric", device="cuda", compiled=compiled, sampled=0.0, sequence_length=LENGTH
    )  # fmt: skip
    tokens = torch.randint(0, teacher.config.vocab_size, (400_000,), device="cuda")
    held = tokens[: 64 * LENGTH].view(64, LENGTH)
    text = FitText(tokens, np.array([0]), np.array([len(tokens)]), held)
    student = make_student(teacher, bundle, scope=scope, mode="geometric")
    trainer = Trainer(teacher, student, text, settings, Checkpoints(WorkDir(folder), "speed"))
    with trainer.keeper.watching(), compiled_layers(trainer.compiled):
        first = timed(trainer, WARM)
        seconds = timed(trainer, STEPS) / STEPS
    return {
        "scope": scope,
        "compiled": compiled,
        "step_ms": round(1e3 * seconds, 2),
        "tokens_per_second": round(settings.step_tokens / seconds),
        "first_steps_s": round(first, 2),
        "memory_mib": torch.cuda.max_memory_allocated() >> 20,
    }


def timed(trainer: Trainer, steps: int) -> float:
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(steps):
        trainer._step(0.1)
    torch.cuda.synchronize()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--calibration", required=True)
    parser.add_argument("--out", type=Path, default=EVIDENCE)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bundle = convert_checkpoint(
            options.model, out=Path(folder) / "bundle", calibration=options.calibration, tokens=60_000,
            alpha=0.05, levels=4, mode="geometric", device="cuda", dtype="float32",
        ).bundle  # fmt: skip
        rows = [measure(bundle, scope, compiled, Path(folder)) for scope, compiled in ARMS]
    for row in rows:
        print(row, flush=True)
    record = {
        "model": Path(options.model).name,
        "device": torch.cuda.get_device_name(),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "protocol": f"random tokens, 32768 a step in windows of {LENGTH}; {STEPS} steps after {WARM}; bfloat16",
        "rows": rows,
    }
    (options.out / "heal_speed_h100.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
