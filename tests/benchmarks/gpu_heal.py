"""Heals on a GPU: converts at given sizes, heals, and evaluates on held-out text before and after; several at one time.

python tests/benchmarks/gpu_heal.py ../shared/models/olmoe-64e --calibration ../shared/data/calibration \
    --text ../shared/data/heldout --minutes 10 --job levels=4,scope=all --job levels=4,colour=12,scope=all

Every job is a process of its own; without --gpus all share one GPU, on which each would see more tokens alone. The
held-out text is only measured on: whole, windows of 1 024 tokens, float32, paired with the untouched model. The clock of a
healing starts before its first step and holds sampling, validations and compilation. Writes `heal-MODEL.json`; a job that
fails leaves its log.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

EVIDENCE = Path(__file__).parent / "evidence"
LENGTH = 1024
KEPT = ("tokens", "blocks", "ppl_base", "ppl", "delta_pct", "ci95", "recall", "kept_mass", "mean_candidates")
NUMBERS = (
    "warmup",
    "levels",
    "colour",
    "candidates",
    "seed",
    "batch_tokens",
    "sequence_length",
    "sampled_length",
)
CONVERTED = ("levels", "colour", "mode", "candidates")


def parsed(text: str) -> dict[str, Any]:
    """`levels=4,scope=all` as settings; what is not of the conversion goes to the healing."""
    job: dict[str, Any] = {"mode": "geometric", "colour": 0}
    for pair in text.split(","):
        key, _, value = pair.partition("=")
        job[key] = int(value) if key in NUMBERS else value
    for key in (
        "lr",
        "weights_lr",
        "router_weight",
        "states_weight",
        "sampled",
        "lm_weight",
        "balance_weight",
    ):
        if key in job:
            job[key] = float(job[key])
    for key in ("compiled", "recorded"):
        if key in job:
            job[key] = job[key] == "true"
    return job


def run_job(options: argparse.Namespace, job: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Converts, heals and evaluates; the record of one row."""
    from spectral_convert.convert import convert_checkpoint
    from spectral_convert.evaluate import evaluate_bundle
    from spectral_convert.healing import heal_bundle

    def measured(bundle: Path, **more: Any) -> dict[str, Any]:
        record = evaluate_bundle(
            bundle, text=options.text, sequence_length=LENGTH, dtype="float32", device=options.device, **more
        )
        return {key: record[key] for key in KEPT}

    start = time.monotonic()
    row: dict[str, Any] = {"job": job}
    if not (folder / "bundle").exists():  # one of an earlier run with --convert
        convert_checkpoint(
            options.model, out=folder / "bundle", calibration=options.calibration, tokens=options.tokens,
            device=options.device, dtype="float32", **{key: job[key] for key in CONVERTED if key in job},
        )  # fmt: skip
    note(f"converted after {time.monotonic() - start:.0f} s")
    if options.convert:
        return row
    if options.before:
        row["closed_form"] = measured(folder / "bundle")
    settings = {key: value for key, value in job.items() if key not in CONVERTED}
    healing = heal_bundle(
        folder / "bundle", out=folder / "healed", minutes=options.minutes, device=options.device, **settings
    )
    row["heal"] = healing.record
    note(f"healed after {time.monotonic() - start:.0f} s")
    row["healed"] = measured(folder / "healed", against=options.model)
    note(f"measured after {time.monotonic() - start:.0f} s")
    return row


def note(text: str) -> None:
    print(text, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--calibration", required=True)
    parser.add_argument("--text", required=True)
    parser.add_argument("--tokens", type=int, default=400_000)
    parser.add_argument("--minutes", type=float, required=True)
    parser.add_argument("--job", action="append", required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--folder", type=Path, default=Path("build/heal"))
    parser.add_argument("--out", type=Path, default=EVIDENCE)
    parser.add_argument(
        "--before", action="store_true", help="Measure the closed form on the held-out text too."
    )
    parser.add_argument(
        "--gpus", type=int, default=0, help="Give the jobs these GPUs in turn; 0: the first to all."
    )
    parser.add_argument(
        "--convert", action="store_true", help="Only convert; the next run with this --folder heals."
    )
    parser.add_argument("--first-gpu", type=int, default=0)
    parser.add_argument("--worker", type=int, help="The number of the job that this process runs.")
    options = parser.parse_args()
    folder = options.folder / Path(options.model).name
    if options.worker is not None:
        place = folder / str(options.worker)
        place.mkdir(parents=True, exist_ok=True)
        row = run_job(options, parsed(options.job[options.worker]), place)
        if options.convert:
            return
        (folder / f"{options.worker}.json").write_text(json.dumps(row, indent=1) + "\n", encoding="utf-8")
        return
    launch(options, folder)
    if not options.convert:
        gather(options, folder)


def launch(options: argparse.Namespace, folder: Path) -> None:
    """One process a job, all at once; waits for all."""
    folder.mkdir(parents=True, exist_ok=True)
    running = []
    for number in range(len(options.job)):
        (folder / f"{number}.json").unlink(missing_ok=True)
        log = (folder / f"{number}.log").open("w")
        command = [sys.executable, *sys.argv, "--worker", str(number)]
        gpu = (
            {"CUDA_VISIBLE_DEVICES": str((options.first_gpu + number) % options.gpus)} if options.gpus else {}
        )
        place = {**os.environ, **gpu}
        running.append(subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=place))
    for process in running:
        process.wait()


def run_of(options: argparse.Namespace) -> str:
    """How much of a GPU each job had, for the table."""
    jobs = -(-len(options.job) // max(options.gpus, 1))
    return "alone on its GPU" if jobs == 1 else f"{jobs} jobs on its GPU"


def gather(options: argparse.Namespace, folder: Path) -> None:
    """Writes the evidence of the jobs that ended well, and shows all."""
    rows = []
    for number, text in enumerate(options.job):
        file = folder / f"{number}.json"
        if not file.is_file():
            print(f"{text}: FAILED\n{(folder / f'{number}.log').read_text()[-2000:]}", flush=True)
            continue
        rows.append(json.loads(file.read_text(encoding="utf-8")) | {"run": run_of(options)})
        after, heal = rows[-1]["healed"], rows[-1]["heal"]
        low, high = after["ci95"]
        print(
            f"{text}: {after['delta_pct']:+.3f} % [{low:+.3f}, {high:+.3f}], "
            f"{heal['tokens'] / 1e6:.1f} M tokens in {heal['seconds']:.0f} s, {heal['tokens_per_second']:,.0f} tok/s, "
            f"best {heal['best_step']} of {heal['steps']}", flush=True,
        )  # fmt: skip
    record = {
        "model": Path(options.model).name,
        "protocol": f"whole held-out text, windows of {LENGTH} tokens, float32, paired; healed on calibration text",
        "calibration_tokens": options.tokens,
        "rows": rows,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    target = options.out / f"heal-{record['model']}.json"
    target.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
