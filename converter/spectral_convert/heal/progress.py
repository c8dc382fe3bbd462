"""What a healing knows of itself: budget, best state, and whether it diverges."""

from __future__ import annotations

import math
import time
from collections import deque
from dataclasses import asdict, dataclass, field
from typing import Any

from spectral_convert.heal.settings import HealSettings
from spectral_runtime.errors import UserError

WINDOW = 20
"""Steps over which a loss is averaged before it is called rising."""


class HealingDiverged(UserError):
    """The loss became NaN or rose; the last good state is in the work folder."""


@dataclass(slots=True)
class Progress:
    """Everything beside tensors that a checkpoint holds."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    sampled: int = 0
    """Steps on sampled text so far."""
    checks: list[dict[str, float]] = field(default_factory=list)
    """Step, seconds and held-back divergence of every validation."""
    best: float = math.inf
    best_step: int = 0
    recent: list[float] = field(default_factory=list)
    """Losses of the last WINDOW steps."""
    lowest: float = math.inf
    """Smallest mean over WINDOW steps so far."""

    def as_json(self) -> dict[str, Any]:
        """For the checkpoint; infinities as None."""
        return {
            key: None if isinstance(value, float) and math.isinf(value) else value
            for key, value in asdict(self).items()
        }

    @classmethod
    def from_json(cls, facts: dict[str, Any]) -> Progress:
        """What `as_json` gave."""
        known: dict[str, Any] = {key: math.inf if value is None else value for key, value in facts.items()}
        return cls(**known)

    def observe(self, losses: list[float], factor: float) -> None:
        """Takes in the losses of some steps.

        Raises:
            HealingDiverged: one is not finite, or their mean over WINDOW steps exceeds the lowest one by `factor`.
        """
        window = deque(self.recent, maxlen=WINDOW)
        for loss in losses:
            if not math.isfinite(loss):
                raise diverged("a finite loss", f"{loss} before step {self.step}", self)
            window.append(loss)
            mean = sum(window) / len(window)
            if len(window) == WINDOW:
                if mean > factor * self.lowest:
                    found = f"{mean:.4g} before step {self.step}, lowest {self.lowest:.4g}"
                    raise diverged("a falling loss", found, self)
                self.lowest = min(self.lowest, mean)
        self.recent = list(window)


def diverged(expected: str, found: str, progress: Progress) -> HealingDiverged:
    """The error, which says what is kept and how to go on."""
    remedy = (
        f"the best state (step {progress.best_step}, held-back divergence {progress.best:.4g}) is kept in the work "
        "folder: continue from the last good checkpoint with --resume and a smaller --lr or --weights-lr"
    )
    return HealingDiverged("heal", expected=expected, found=found, remedy=remedy)


class Budget:
    """Steps or minutes, whichever was given, from `start` on the monotonic clock; time of earlier runs counts."""

    def __init__(self, settings: HealSettings, progress: Progress, start: float) -> None:
        self.settings, self.before, self.start = settings, progress.seconds, start

    @property
    def seconds(self) -> float:
        """Spent so far, earlier runs included."""
        return self.before + time.monotonic() - self.start

    def fraction(self, step: int) -> float:
        """Share of the budget spent when `step` steps are done."""
        if self.settings.steps is not None:
            return step / self.settings.steps
        assert self.settings.minutes is not None
        return self.seconds / (60.0 * self.settings.minutes)
