"""What a healing leaves: the checkpoint of a healed model, and the evidence of how it went."""

from __future__ import annotations

import dataclasses
import platform
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from spectral_convert.heal.balance import balance
from spectral_convert.heal.remeasure import HealedLayer
from spectral_convert.heal.settings import HealSettings
from spectral_convert.heal.student import Student
from spectral_convert.heal.train import Healed
from spectral_runtime.bundle import Bundle
from spectral_runtime.bundle.writer import CARD_FILE

KEPT = ("tokens", "ppl_base", "ppl", "delta_pct", "ci95", "blocks", "recall", "kept_mass", "mean_candidates")
"""Of an evaluation, in the record; `evidence/evaluate.json` has all of the healed one."""


def save_checkpoint(student: Student, original: Any, tokenizer: Any, folder: Path) -> dict[str, Path]:
    """Writes the healed model as transformers would, in the dtypes of the original checkpoint.

    Args:
        student: its routers are given their own class back.
        original: a fresh copy of the original in its own dtypes; receives the trained weights.
        tokenizer: goes with it.
        folder: replaced.

    Returns:
        File name to file, for the writer of bundles to carry.
    """
    student.detach()
    original.load_state_dict(student.model.state_dict())
    shutil.rmtree(folder, ignore_errors=True)
    original.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    files = (path for path in folder.rglob("*") if path.is_file())
    return {p.relative_to(folder).as_posix(): p for p in sorted(files) if p.name != CARD_FILE}


def heal_evidence(
    settings: HealSettings,
    bundle: Bundle,
    healed: Healed,
    layers: Sequence[HealedLayer],
    *,
    evaluations: tuple[Any, Any],
) -> dict[str, Any]:
    """The record of `evidence/heal.json`: settings, cost, losses, quality before and after, expert load."""
    progress, (before, after) = healed.progress, evaluations
    device = torch.device(settings.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    seconds = max(progress.seconds, 1e-9)
    return {
        "original": dataclasses.asdict(bundle.manifest.base_model),
        "settings": settings.as_json(),
        "steps": progress.step,
        "tokens": progress.tokens,
        "sampled_steps": progress.sampled,
        "seconds": round(progress.seconds, 3),
        "tokens_per_second": round(progress.tokens / seconds, 1),
        "device": name,
        "torch": torch.__version__,
        "best_step": progress.best_step,
        "held_back_before": {"divergence": healed.before[0], "lm_loss": healed.before[1]},
        "held_back_after": {"divergence": healed.after[0], "lm_loss": healed.after[1]},
        "checks": progress.checks,
        "evaluation_before": _kept(before),
        "evaluation_after": _kept(after),
        "layers": [
            {
                "path": layer.site.path,
                "load": balance(layer.load),
                "load_original": balance(layer.original_load),
                "moved_load": round(float((layer.load - layer.original_load).abs().sum() / 2), 4),
            }
            for layer in layers
        ],
    }


def _kept(evaluation: Any) -> dict[str, Any]:
    record = evaluation.as_json()
    return {key: record[key] for key in KEPT} | {"ci95": list(record["ci95"])}
