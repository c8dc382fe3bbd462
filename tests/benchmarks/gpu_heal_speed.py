"""Times healing on a GPU: a step by batch, launched piece by piece or recorded, and the original writing text.

python tests/benchmarks/gpu_heal_speed.py ../shared/models/olmoe-64e --calibration ../shared/data/calibration

Scope all, teacher and student together; 25 steps after 11 that warm up, compile and record. Writes `heal_speed.json`.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import transformers

from spectral_convert.convert import convert_checkpoint
from spectral_convert.heal.checkpoint import Checkpoints
from spectral_convert.heal.sample import write_on
from spectral_convert.heal.settings import HealSettings
from spectral_convert.heal.student import make_student
from spectral_convert.heal.train import Trainer
from spectral_convert.heal.windows import fit_text
from spectral_convert.text import training_documents
from spectral_convert.workdir import WorkDir
from spectral_runtime.attaching.load import load_base_of

EVIDENCE = Path(__file__).parent / "evidence"
ARMS = (
    {"compiled": False, "recorded": False, "batch_tokens": 32768},
    {"compiled": True, "recorded": False, "batch_tokens": 32768},
    {"compiled": True, "recorded": True, "batch_tokens": 32768},
    {"compiled": True, "recorded": True, "batch_tokens": 16384},
)
WARM, STEPS, LENGTH, WRITTEN = 11, 25, 1024, 256


def trainer_of(bundle: Any, calibration: str, folder: Path, **arm: Any) -> Trainer:
    teacher, tokenizer = load_base_of(bundle, None, dtype="auto", device="cuda")
    settings = HealSettings(steps=10**6, scope="all", mode="geometric", device="cuda", sampled=0.0, **arm)
    text = fit_text(
        training_documents(tokenizer, calibration, tokens=60_000, length=512, seed=0),
        separator=tokenizer.eos_token_id, length=LENGTH, validation_tokens=65_536, seed=0, device="cuda",
    )  # fmt: skip
    student = make_student(teacher, bundle, scope="all", mode="geometric")
    return Trainer(teacher, student, text, settings, Checkpoints(WorkDir(folder), "speed"))


def measure(bundle: Any, calibration: str, folder: Path, arm: dict[str, Any]) -> dict[str, Any]:
    trainer = trainer_of(bundle, calibration, folder, **arm)
    with trainer.ready():
        warm = timed(trainer, WARM)
        seconds = timed(trainer, STEPS) / STEPS
        written = {str(rows): round(rows * WRITTEN / writing(trainer, rows)) for rows in (2048, 8192)}
    return {
        **arm,
        "step_ms": round(1e3 * seconds, 2),
        "tokens_per_second": round(trainer.settings.step_tokens / seconds),
        "first_steps_s": round(warm, 2),
        "memory_mib": torch.cuda.max_memory_allocated() >> 20,
        "written_per_second": written,
    }


def timed(trainer: Trainer, steps: int) -> float:
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(steps):
        trainer._step(0.1)
    torch.cuda.synchronize()
    return time.perf_counter() - start


def writing(trainer: Trainer, rows: int) -> float:
    """Seconds for this many texts at one time."""
    prompt = trainer.text.draw(8, rows, (0, 1, 0))
    generator = torch.Generator("cuda").manual_seed(0)
    torch.cuda.synchronize()
    start = time.perf_counter()
    write_on(trainer.sampled.teacher, prompt, WRITTEN, generator)
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
        rows = [measure(bundle, options.calibration, Path(folder), arm) for arm in ARMS]
    for row in rows:
        print(row, flush=True)
    record = {
        "model": Path(options.model).name,
        "device": torch.cuda.get_device_name(),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "protocol": f"windows of {LENGTH}, scope all, bfloat16; {STEPS} steps after {WARM}; texts of {WRITTEN} tokens written",
        "rows": rows,
    }
    (options.out / "heal_speed.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
