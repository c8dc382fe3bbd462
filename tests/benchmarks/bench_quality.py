"""Closed-form quality: converts a checkpoint at several ranks and candidate counts, and evaluates each on held-out text.

python tests/benchmarks/bench_quality.py ../shared/models/olmoe-64e --calibration ../shared/data/calibration \
    --text ../shared/data/heldout --every 10

The held-out text is only measured on. Every row is one `convert_checkpoint` (the capture is shared through the work folder)
and one `evaluate_model` on every n-th window of the text; perplexities are paired (same windows, same process), intervals are
block-bootstrap 95 %. Writes `evidence/quality-NAME.json`.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers

from spectral_convert.convert import convert_checkpoint
from spectral_convert.evaluate import evaluate_model
from spectral_convert.text import TextSet, whole_text
from spectral_runtime.attaching.load import load_base

EVIDENCE = Path(__file__).parent / "evidence"
LENGTH = 1024
ROWS = (
    ("prefilter", 1, 0, 32),
    ("prefilter", 4, 0, 16),
    ("prefilter", 4, 0, 32),
    ("prefilter", 4, 12, 16),
    ("prefilter", 4, 12, 24),
    ("auto", 4, 12, None),
    ("geometric", 4, 0, None),
    ("geometric", 4, 12, None),
)
"""Mode, levels, colour, candidates."""
KEPT = (
    "tokens",
    "blocks",
    "ppl_base",
    "ppl",
    "delta_pct",
    "ci95",
    "recall",
    "kept_mass",
    "mean_candidates",
    "certified",
)


def every(text: TextSet, step: int) -> TextSet:
    windows = text.windows[::step]
    return TextSet(windows, replace(text.split, tokens=sum(len(window.ids) for window in windows)))


def measure(options: argparse.Namespace, model: Any, text: TextSet, row: Any, folder: Path) -> dict[str, Any]:
    mode, levels, colour, candidates = row
    settings = {"mode": mode, "levels": levels, "colour": colour, "candidates": candidates, "refine": False}
    bundle = convert_checkpoint(
        options.model,
        out=folder / "bundle",
        work=folder / "work",
        overwrite=True,
        calibration=options.calibration,
        tokens=options.tokens,
        device=options.device,
        dtype="float32",
        **settings,
    ).bundle
    record = evaluate_model(model, bundle, text, sequence_length=LENGTH).as_json()
    layers = [
        {key: layer[key] for key in ("path", "mode", "mean_candidates", "recall")}
        for layer in record["layers"]
    ]
    return {**settings, **{key: record[key] for key in KEPT}, "layers": layers}


def show(row: dict[str, Any]) -> None:
    low, high = row["ci95"]
    print(
        f"{row['mode']:10} L={row['levels']:2} S={row['colour']:2} C={row['candidates'] or '-':>3}  {row['delta_pct']:+9.3f} % "
        f"[{low:+.3f}, {high:+.3f}]  recall {row['recall']:.4f}  mean C {row['mean_candidates']:.1f}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--calibration", required=True)
    parser.add_argument("--text", required=True)
    parser.add_argument("--tokens", type=int, default=400_000)
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--rows", type=int, nargs="*", default=range(len(ROWS)))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=EVIDENCE)
    options = parser.parse_args()
    model, tokenizer = load_base(options.model, dtype="float32", device=options.device)
    text = every(whole_text(tokenizer, options.text, LENGTH), options.every)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for number in options.rows:
            rows.append(measure(options, model, text, ROWS[number], Path(folder)))
            show(rows[-1])
    device = torch.cuda.get_device_name() if options.device == "cuda" else platform.machine()
    record = {
        "model": Path(options.model).name,
        "protocol": f"held-out text, every {options.every}th window of {LENGTH} tokens, float32, paired",
        "calibration_tokens": options.tokens,
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__, "device": device},
        "rows": rows,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    target = options.out / f"quality-{record['model']}.json"
    target.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
