"""The parts of an evaluation beyond the text's perplexity, and the protocol that identifies all of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from spectral_convert.downstream import harness, long_context, minimal_pairs
from spectral_convert.downstream.sequences import Scored, score_sequences
from spectral_runtime.attaching.attachment import attach
from spectral_runtime.bundle import Bundle
from spectral_runtime.bundle.manifest import Mode
from spectral_runtime.errors import ConfigError

Result = TypeVar("Result")
MOST_WINDOWS = 16
"""Long windows that perplexity by position is measured on."""


@dataclass(frozen=True, slots=True)
class Routing:
    """A model, the bundle that is attached for every second measurement, and another model for the first, if any."""

    model: Any
    tokenizer: Any
    bundle: Bundle
    mode: Mode | None
    candidates: int | None
    reference: Any = None

    def both(self, measure: Callable[[Any, str], Result]) -> tuple[Result, Result]:
        """`measure(model, "base")`, then `measure(model, "converted")` with the routers attached."""
        base = measure(self.model if self.reference is None else self.reference, "base")
        with attach(self.model, self.bundle, self.mode, candidates=self.candidates):
            return base, measure(self.model, "converted")


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What an evaluation is asked for; the keywords of `evaluate_bundle` are made from these fields."""

    text: str | Path | None = None
    """UTF-8 file or folder of `.txt`; documents separated by a form feed."""
    max_tokens: int | None = None
    """Of the text."""
    sequence_length: int = 1024
    """Tokens per window."""
    stride: int | None = None
    """Tokens from one window to the next; None: windows do not overlap."""
    pairs: str | Path | None = None
    """JSONL of minimal pairs, or a folder of them."""
    max_pairs: int | None = None
    """Of each file."""
    tasks: tuple[str, ...] = ()
    """Of lm-evaluation-harness."""
    task_limit: int | None = None
    """Examples a task."""
    task_folder: str | Path | None = None
    """Of further task definitions."""
    long_context: bool = False
    """Perplexity by position, pass key and copying; fills the context with `text`."""
    max_length: int | None = None
    """Longest context tried; None: the model's limit."""
    trials: int = 8
    """Probes of every length."""
    seed: int = 0
    """Of bootstraps and probes."""

    def check(self) -> None:
        """Raises ConfigError before anything is loaded."""
        if self.text is None and self.pairs is None and not self.tasks:
            remedy = "give --text, --pairs or --tasks"
            raise ConfigError("evaluate", expected="something to evaluate on", found="nothing", remedy=remedy)
        if self.long_context and self.text is None:
            raise ConfigError("evaluate.long_context", expected="--text to fill the context", found="none")
        if self.stride is not None and not 1 <= self.stride <= self.sequence_length:
            expected = f"1 to {self.sequence_length} (the sequence length)"
            raise ConfigError("evaluate.stride", expected=expected, found=str(self.stride))
        if self.tasks:
            harness.require_harness()

    def protocol(self, record: dict[str, Any]) -> dict[str, Any]:
        """All that must be equal for two records to be compared: settings, and digests of what was read."""
        found: dict[str, Any] = {"seed": self.seed}
        if self.text is not None:
            found["text"] = {
                "sha256": record["text"]["sha256"], "tokens": record["text"]["tokens"],
                "scored": record["tokens"], "sequence_length": self.sequence_length,
                "windows": f"{self.stride or self.sequence_length} apart",
            }  # fmt: skip
        if self.pairs is not None:
            found["pairs"] = {key: record["pairs"][key] for key in ("sha256", "first_token", "score")}
        if self.tasks:
            found["tasks"] = {"names": sorted(self.tasks), "limit": self.task_limit}
        if self.long_context:
            keys = ("limit", "trials")
            found["long_context"] = {key: record["long_context"][key] for key in keys}
        return found


def measure_parts(routing: Routing, parts: Parts) -> dict[str, Any]:
    """The records of pairs, tasks and long context, where asked for."""
    record: dict[str, Any] = {}
    if parts.pairs is not None:
        record["pairs"] = _pairs(routing, parts)
    if parts.tasks:
        record["tasks"] = _tasks(routing, parts)
    if parts.long_context:
        record["long_context"] = _long_context(routing, parts)
    return record


def _pairs(routing: Routing, parts: Parts) -> dict[str, Any]:
    assert parts.pairs is not None
    content = minimal_pairs.read_pairs(parts.pairs, parts.max_pairs)
    windows, start = minimal_pairs.pair_windows(routing.tokenizer, content.pairs)
    base, converted = routing.both(
        lambda model, name: minimal_pairs.pair_choices(model, windows, f"pairs {name}")
    )
    identity = {
        "sha256": content.sha256,
        "first_token": start,
        "score": "sum of log-likelihoods, whole sentence",
    }
    return {**identity, **minimal_pairs.compare_choices(content.pairs, base, converted)}


def _tasks(routing: Routing, parts: Parts) -> list[dict[str, Any]]:
    def measure(model: Any, _: str) -> dict[str, Any]:
        return harness.run_tasks(
            model, routing.tokenizer, parts.tasks,
            limit=parts.task_limit, folder=parts.task_folder, seed=parts.seed,
        )  # fmt: skip

    return harness.compare_tasks(*routing.both(measure))


def _long_context(routing: Routing, parts: Parts) -> dict[str, Any]:
    limit = long_context.context_limit(routing.model, parts.max_length)
    filler = long_context.joined_text(routing.tokenizer, str(parts.text), limit * MOST_WINDOWS)
    windows = long_context.full_windows(filler, limit, MOST_WINDOWS)
    asked = long_context.probes(routing.tokenizer, filler, limit, parts.trials, parts.seed)
    every = [*windows, *(probe.window for probe in asked)]

    def measure(model: Any, name: str) -> list[Scored]:
        return score_sequences(model, every, f"long context {name}")

    base, converted = routing.both(measure)
    count = len(windows)
    return {
        "limit": limit,
        "trials": parts.trials,
        "positions": long_context.by_position(windows, base[:count], converted[:count], parts.seed),
        "probes": long_context.probe_rows(asked, base[count:], converted[count:], parts.seed),
    }
