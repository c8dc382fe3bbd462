"""Checkpoints of a healing in its work folder: masters, moments, best state and progress, written whole."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch

from spectral_convert.heal.optimise import Optimiser
from spectral_convert.heal.progress import Progress
from spectral_convert.heal.settings import HealSettings
from spectral_convert.heal.windows import FitText
from spectral_convert.workdir import WorkDir, digest_of
from spectral_runtime.bundle import Bundle
from spectral_runtime.bundle.manifest_rules import TENSOR_FILE
from spectral_runtime.errors import ConfigError

STAGE = "heal"


def heal_digest(bundle: Bundle, settings: HealSettings, text: FitText) -> str:
    """What a checkpoint belongs to: the bundle, the text, and the settings that shape the training."""
    words = hashlib.sha256(text.tokens.cpu().numpy().tobytes()).hexdigest()
    tensors = bundle.manifest.files[TENSOR_FILE].sha256
    return digest_of(tensors, bundle.manifest.layers, settings.lasting(), words)


class Checkpoints:
    """The one checkpoint of a healing, under the digest of what must not change."""

    def __init__(self, work: WorkDir, key: str) -> None:
        self.work, self.key = work, key

    def save(self, optimiser: Optimiser, progress: Progress, best: Sequence[torch.Tensor]) -> None:
        """Replaces the checkpoint; an interruption leaves the one before."""
        tensors = optimiser.state() | {f"best.{i}": tensor for i, tensor in enumerate(best)}
        self.work.save(STAGE, self.key, tensors, progress.as_json())

    def load(self, optimiser: Optimiser) -> tuple[Progress, list[torch.Tensor]]:
        """Puts the optimiser where it was.

        Raises:
            ConfigError: there is no checkpoint of this healing.
        """
        stored = self.work.load(STAGE, self.key)
        if stored is None:
            remedy = "leave --resume away, or give the same bundle, text, scope, lengths, seed and --work"
            where = str(self.work.folder)
            raise ConfigError(where, expected="a checkpoint of this healing", found="none", remedy=remedy)
        tensors, facts = stored
        optimiser.restore(tensors)
        return Progress.from_json(facts), [tensors[f"best.{i}"] for i in range(len(optimiser.masters))]
