"""Minimal pairs: does a model prefer the grammatical of two sentences; McNemar's test per phenomenon."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spectral_convert.downstream.sequences import score_sequences
from spectral_convert.text import Window
from spectral_runtime.errors import TextError

GROUP_KEYS = ("linguistics_term", "phenomenon", "field")


@dataclass(frozen=True, slots=True)
class MinimalPair:
    """Two sentences, of which only the first is right."""

    good: str
    bad: str
    phenomenon: str
    paradigm: str


@dataclass(frozen=True, slots=True)
class PairSet:
    """Pairs in file order and what identifies them."""

    pairs: tuple[MinimalPair, ...]
    sha256: str


def read_pairs(source: str | Path, limit: int | None = None) -> PairSet:
    """The pairs of a JSONL file or of all `*.jsonl` of a folder, at most `limit` of each file.

    Raises:
        TextError: nothing there, or a row without `sentence_good` and `sentence_bad`.
    """
    path = Path(source)
    files = sorted(path.rglob("*.jsonl")) if path.is_dir() else [path]
    pairs = tuple(pair for file in files for pair in _file_pairs(file, limit))
    if not pairs:
        raise TextError(str(source), expected="minimal pairs in .jsonl files", found="none")
    content = "\0".join(f"{pair.good}\0{pair.bad}" for pair in pairs)
    return PairSet(pairs, hashlib.sha256(content.encode()).hexdigest())


def _file_pairs(file: Path, limit: int | None) -> list[MinimalPair]:
    pairs = []
    try:
        lines = [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
        for line in lines[:limit]:
            row = json.loads(line)
            good, bad = row["sentence_good"], row["sentence_bad"]
            if not (isinstance(good, str) and isinstance(bad, str)):
                raise TypeError("sentences are not strings")
            paradigm = str(row.get("UID", file.stem))
            phenomenon = next((str(row[key]) for key in GROUP_KEYS if key in row), paradigm)
            pairs.append(MinimalPair(good, bad, phenomenon, paradigm))
    except (OSError, ValueError, KeyError, TypeError) as error:
        expected = "JSONL rows with sentence_good and sentence_bad"
        raise TextError(str(file), expected=expected, found=f"{type(error).__name__}: {error}") from error
    return pairs


def pair_windows(tokenizer: Any, pairs: Sequence[MinimalPair]) -> tuple[tuple[Window, ...], str | None]:
    """Windows good, bad, good, bad ... and the token put before each so that its first word counts too."""
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    windows = []
    for number, pair in enumerate(pairs):
        for sentence in (pair.good, pair.bad):
            ids = tokenizer(sentence, add_special_tokens=False, verbose=False)["input_ids"]
            prefix = [] if start is None else [start]
            if len(prefix) + len(ids) < 2:
                raise TextError(
                    f"pair {number + 1}", expected="sentences of two tokens", found=repr(sentence)
                )
            windows.append(Window(number, tuple(prefix + list(ids))))
    return tuple(windows), None if start is None else str(tokenizer.convert_ids_to_tokens(start))


def pair_choices(model: Any, windows: Sequence[Window], label: str) -> NDArray[np.bool_]:
    """[pairs], whether the model finds the good sentence more likely; a tie is not right."""
    totals = np.array([scored.losses.sum() for scored in score_sequences(model, windows, label)])
    return np.asarray(totals[0::2] < totals[1::2])


def mcnemar_exact(gained: int, lost: int) -> float:
    """Two-sided exact p-value that gains and losses are equally likely (McNemar 1947, binomial)."""
    number = gained + lost
    if number == 0:
        return 1.0
    tail = sum(math.comb(number, k) for k in range(min(gained, lost) + 1))
    return float(min(1.0, 2 * tail / 2**number))


def compare_choices(
    pairs: Sequence[MinimalPair], base: NDArray[np.bool_], converted: NDArray[np.bool_]
) -> dict[str, Any]:
    """Accuracies overall, by phenomenon and by paradigm, base against converted."""
    record: dict[str, Any] = {"overall": _compare(base, converted)}
    for key, plural in (("phenomenon", "phenomena"), ("paradigm", "paradigms")):
        names = np.array([getattr(pair, key) for pair in pairs])
        record[plural] = [
            {"name": str(name), **_compare(base[names == name], converted[names == name])}
            for name in np.unique(names)
        ]
    return record


def _compare(base: NDArray[np.bool_], converted: NDArray[np.bool_]) -> dict[str, Any]:
    number = len(base)
    gained, lost = int((converted & ~base).sum()), int((base & ~converted).sum())
    delta = (gained - lost) / number
    spread = math.sqrt(max((gained + lost) - (gained - lost) ** 2 / number, 0.0)) / number
    return {
        "pairs": number,
        "accuracy_base": float(base.mean()),
        "accuracy": float(converted.mean()),
        "delta": delta,
        "ci95": [delta - 1.96 * spread, delta + 1.96 * spread],
        "gained": gained,
        "lost": lost,
        "mcnemar_p": mcnemar_exact(gained, lost),
    }
