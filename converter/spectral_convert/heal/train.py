"""The training loop: windows, divergence, step; validations choose the best state, checkpoints make it resumable."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from tqdm import tqdm

from spectral_convert.heal.attention import maskless
from spectral_convert.heal.balance import LoadKeeper
from spectral_convert.heal.checkpoint import Checkpoints
from spectral_convert.heal.experts import gathered
from spectral_convert.heal.follow import Follower, compiled
from spectral_convert.heal.loss import Distillation
from spectral_convert.heal.optimise import Optimiser, rate_at
from spectral_convert.heal.progress import Budget, Progress, diverged
from spectral_convert.heal.sample import SampledText
from spectral_convert.heal.settings import HealSettings
from spectral_convert.heal.student import Student, share, teacher_sites
from spectral_convert.heal.update import Recorded, Update, aside
from spectral_convert.heal.windows import FitText

UNREAD = {"cpu": 1, "cuda": 16}
"""Steps whose losses stay on the device before they are read: every reading waits for it."""


@dataclass(frozen=True, slots=True)
class Healed:
    """How a healing went; the student holds the best state."""

    progress: Progress
    before: tuple[float, float]
    """Held-back divergence and LM loss of the first state, nats a token."""
    after: tuple[float, float]
    """Of the best state."""


class Trainer:
    """One healing: what the loop needs, made once."""

    def __init__(
        self, teacher: Any, student: Student, text: FitText, settings: HealSettings, checkpoints: Checkpoints
    ) -> None:
        self.text, self.settings, self.student, self.checkpoints = text, settings, student, checkpoints
        self.loss = Distillation(
            teacher, student.model, lm_weight=settings.lm_weight, compiled=settings.compiles
        )
        self.keeper = LoadKeeper(
            teacher_sites(teacher, student), list(student.routers.values()),
            scores=settings.router_weight > 0, fused=settings.compiles,
        )  # fmt: skip
        self.follower = Follower(teacher, student.model, fused=settings.compiles)
        self.optimiser = Optimiser(
            student.geometry(), student.weights(),
            lr=settings.lr, weights_lr=settings.weights_rate, clip=settings.clip,
        )  # fmt: skip
        # Its own structure over the same tensors: compiled layers would be compiled anew for every length of the cache.
        self.sampled = SampledText(
            share(teacher), text,
            length=settings.written_length, window=settings.window,
            batch=_rows(settings, settings.window), seed=settings.seed,
        )  # fmt: skip
        self.models = (teacher, student.model, self.sampled.teacher)
        update = Update(self.loss, self.keeper, self.follower, self.optimiser, settings)
        self.update = Recorded(update) if settings.records else update
        self.rate = torch.zeros((), device=text.tokens.device)
        self.unread: list[torch.Tensor] = []
        self.progress, self.best = Progress(), self.optimiser.snapshot()
        self.written = time.monotonic()
        rows = min(_rows(settings, settings.window), len(text.held_back))
        self.held_back = text.held_back[: len(text.held_back) // rows * rows]  # whole batches: one shape
        self.held_rows = rows

    def run(self, resume: bool) -> Healed:
        """Trains until the budget is spent; the student then holds the best state.

        Raises:
            HealingDiverged: the loss is not finite or rises; the checkpoint is the last good one.
        """
        with self.ready():
            return self._run(resume)

    @contextlib.contextmanager
    def ready(self) -> Iterator[None]:
        """Both models as they are while training; as before afterwards."""
        # Watched from the first forward on: layers that change their class are compiled again.
        with contextlib.ExitStack() as stack:
            if isinstance(self.update, Recorded):
                stack.enter_context(aside(self.text.tokens.device))
            stack.enter_context(maskless(self.models))
            stack.enter_context(gathered(self.models))
            stack.enter_context(self.keeper.watching())
            if self.settings.states_weight:
                stack.enter_context(self.follower.watching())
            if self.settings.compiles:
                stack.enter_context(compiled(self.follower.layers))
            yield

    def _run(self, resume: bool) -> Healed:
        start = time.monotonic()  # compilation happens at the first use: it counts
        before = self._measure()
        if not all(map(math.isfinite, before)):
            raise diverged("a finite loss", f"{before[0]} before the first step", self.progress)
        if resume:
            self.progress, self.best = self.checkpoints.load(self.optimiser)
        else:
            self._judge(before[0])
        self._loop(Budget(self.settings, self.progress, start))
        self.optimiser.adopt(self.best)
        return Healed(self.progress, before, self._measure())

    def _loop(self, budget: Budget) -> None:
        progress = self.progress
        with tqdm(total=1000, desc="heal", disable=None, leave=False, bar_format=BAR) as bar:
            while (fraction := budget.fraction(progress.step)) < 1.0:
                self._step(fraction)
                if len(self.unread) >= UNREAD.get(self.text.tokens.device.type, 1):
                    self._read()
                after = budget.fraction(progress.step)
                progress.seconds = budget.seconds
                self._show(bar, min(after, 1.0))
                if int(after * self.settings.checks) > int(fraction * self.settings.checks) or after >= 1.0:
                    self._check()
        progress.seconds = budget.seconds
        if progress.checks[-1]["step"] != progress.step:  # the clock ran out after a step's own look at it
            self._check()

    def _step(self, fraction: float) -> None:
        ids = self._windows()
        self.rate.fill_(rate_at(fraction, self.progress.step, self.settings.rise))
        self.unread.append(self.update(ids, self.rate))
        self.progress.step += 1
        self.progress.tokens += ids.numel()

    def _windows(self) -> torch.Tensor:
        """The windows of this step: sampled ones at even intervals, else real ones."""
        progress, settings = self.progress, self.settings
        if int((progress.step + 1) * settings.sampled_share) > int(progress.step * settings.sampled_share):
            progress.sampled += 1
            return self.sampled.take(progress.sampled - 1)
        length = settings.window
        return self.text.draw(length, _rows(settings, length), (settings.seed, 0, progress.step))

    def _read(self) -> None:
        if self.unread:
            losses = torch.stack(self.unread).tolist()
            self.unread.clear()
            self.progress.observe(losses, self.settings.divergence)

    def _check(self) -> None:
        """A validation, and a checkpoint when the last one is old enough."""
        self._read()
        self._judge(self._measure()[0])
        if time.monotonic() - self.written >= self.settings.checkpoint_seconds:
            self.checkpoints.save(self.optimiser, self.progress, self.best)
            self.written = time.monotonic()

    def _judge(self, found: float) -> None:
        progress = self.progress
        if not math.isfinite(found):
            raise diverged("a finite loss", f"{found} on held-back text at step {progress.step}", progress)
        seconds = round(progress.seconds, 3)
        progress.checks.append({"step": progress.step, "seconds": seconds, "divergence": found})
        if found < progress.best:
            progress.best, progress.best_step = found, progress.step
            self.best = self.optimiser.snapshot()

    def _measure(self) -> tuple[float, float]:
        return self.loss.measure(self.held_back, self.held_rows)

    def _show(self, bar: Any, fraction: float) -> None:
        bar.update(int(1000 * fraction) - bar.n)
        recent, progress = self.progress.recent, self.progress
        speed = progress.tokens / max(progress.seconds, 1e-9)
        shown = f"{recent[-1]:.4f}" if recent else "-"
        bar.set_postfix_str(
            f"step {progress.step} loss {shown} held back {progress.best:.4f} {speed:,.0f} tok/s",
            refresh=False,
        )


BAR = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining} {postfix}"


def _rows(settings: HealSettings, length: int) -> int:
    return max(1, settings.step_tokens // length)
