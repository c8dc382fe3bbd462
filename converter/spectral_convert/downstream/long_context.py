"""Long context: perplexity by position, a pass key in a haystack, and copying, at growing length."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spectral_convert.downstream.sequences import Scored
from spectral_convert.paired import compare
from spectral_convert.sources import read_documents
from spectral_convert.text import Window, tokenise
from spectral_runtime.errors import TextError

SHORTEST = 128
INTRODUCTION = "There is a pass key hidden in the text. Remember it.\n"
NEEDLE = "The pass key is {key}. Remember it, {key} is the pass key.\n"
QUESTION = "\nWhat is the pass key? The pass key is"


@dataclass(frozen=True, slots=True)
class Probe:
    """One window and the part of it that is asked for."""

    kind: str
    """`passkey`, `no passkey` (the same question without the answer in the text) or `copy`."""
    length: int
    window: Window
    asked: slice
    """Of the window's scores."""


def context_limit(model: Any, most: int | None) -> int:
    """How long a context is tried: the model's own limit, or `most` when that is less."""
    limit = int(getattr(model.config, "max_position_embeddings", 0) or 2048)
    return max(SHORTEST, min(limit, most or limit))


def lengths(limit: int) -> list[int]:
    """128, 256, ... up to `limit`, which is the last."""
    doubling = [SHORTEST]
    while doubling[-1] * 2 <= limit:
        doubling.append(doubling[-1] * 2)
    return doubling if doubling[-1] == limit else [*doubling, limit]


def joined_text(tokenizer: Any, source: str, tokens: int) -> list[int]:
    """At least as many tokens as the text has up to `tokens`, documents joined in order.

    Raises:
        TextError: the text is too short for the shortest context.
    """
    ids: list[int] = []
    for document in read_documents(source):
        ids += tokenise(tokenizer, document, tokens - len(ids))
        if len(ids) >= tokens:
            break
    if len(ids) < SHORTEST:
        raise TextError(source, expected=f"{SHORTEST} tokens for a long context", found=str(len(ids)))
    return ids


def full_windows(ids: Sequence[int], limit: int, most: int) -> tuple[Window, ...]:
    """Up to `most` windows of exactly `limit` tokens of the joined text, or one shorter."""
    windows = [
        Window(number, tuple(ids[start : start + limit]))
        for number, start in enumerate(range(0, max(len(ids) - limit, 0) + 1, limit))
    ]
    return tuple(windows[:most])


def by_position(
    windows: Sequence[Window], base: Sequence[Scored], converted: Sequence[Scored], seed: int
) -> list[dict[str, Any]]:
    """Paired perplexity of the tokens with `from` to `to` tokens of context, in doubling ranges."""
    longest = max(len(window.ids) for window in windows) - 1
    edges = [0, *[n for n in lengths(longest) if n < longest], longest]
    rows = []
    for first, last in itertools.pairwise(edges):
        parts = [(b.losses[first:last], c.losses[first:last]) for b, c in zip(base, converted, strict=True)]
        kept = [(w, *p) for w, p in zip(windows, parts, strict=True) if len(p[0])]
        pair = compare([k[0] for k in kept], [k[1] for k in kept], [k[2] for k in kept], seed=seed)
        rows.append(
            {
                "from": first + 1, "to": last, "tokens": pair.tokens, "ppl_base": pair.ppl_base,
                "ppl": pair.ppl, "delta_pct": pair.delta_pct, "ci95": list(pair.ci95), "windows": pair.blocks,
            }
        )  # fmt: skip
    return rows


def probes(tokenizer: Any, filler: Sequence[int], limit: int, trials: int, seed: int) -> list[Probe]:
    """Pass key and copy probes of every length, `trials` each."""
    rng = np.random.default_rng(seed)
    alphabet = np.unique(filler)
    found = []
    for length in lengths(limit):
        for trial in range(trials):
            found += _passkey(tokenizer, filler, length, (trial + 0.5) / trials, rng)
            found.append(_copy(alphabet, length, rng))
    return found


def _passkey(
    tokenizer: Any, filler: Sequence[int], length: int, depth: float, rng: np.random.Generator
) -> list[Probe]:
    """The question with the answer at relative `depth` of the text, and without it."""

    def encode(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    key = str(rng.integers(10_000, 100_000))
    head, needle, question = encode(INTRODUCTION), encode(NEEDLE.format(key=key)), encode(QUESTION)
    answer = encode(" " + key)
    room = length - len(head) - len(needle) - len(question) - len(answer)
    if room < 0:
        return []
    start = int(rng.integers(0, max(len(filler) - room, 0) + 1))
    hay = [*filler, *filler][start : start + room + len(needle)]
    before, after = hay[: int(depth * room)], hay[int(depth * room) : room]
    with_key = [*head, *before, *needle, *after, *question, *answer]
    without = [*head, *hay[: room + len(needle)], *question, *answer]
    return [
        Probe(kind, length, Window(0, tuple(ids)), slice(len(ids) - len(answer) - 1, len(ids) - 1))
        for kind, ids in (("passkey", with_key), ("no passkey", without))
    ]


def _copy(alphabet: NDArray[Any], length: int, rng: np.random.Generator) -> Probe:
    """Random tokens twice: all but the first of the second half can be known by copying."""
    half = rng.choice(alphabet, length // 2).tolist()
    return Probe("copy", length, Window(0, tuple(half + half)), slice(length // 2, 2 * (length // 2) - 1))


def probe_rows(
    asked: Sequence[Probe], base: Sequence[Scored], converted: Sequence[Scored], seed: int
) -> list[dict[str, Any]]:
    """Per kind and length: exact answers, tokens right, loss a token, paired loss difference."""
    rows = []
    for kind, length in dict.fromkeys((probe.kind, probe.length) for probe in asked):
        chosen = [i for i, probe in enumerate(asked) if (probe.kind, probe.length) == (kind, length)]
        first, second = ([_answer(asked[i], side[i]) for i in chosen] for side in (base, converted))
        gap = np.array([b[2] - a[2] for a, b in zip(first, second, strict=True)])
        low, high = _interval(gap, seed)
        rows.append(
            {
                "kind": kind, "length": length, "trials": len(chosen),
                "exact_base": _mean(first, 0), "exact": _mean(second, 0),
                "token_accuracy_base": _mean(first, 1), "token_accuracy": _mean(second, 1),
                "nll_base": _mean(first, 2), "nll": _mean(second, 2),
                "delta_nll": float(gap.mean()), "ci95": [low, high],
            }
        )  # fmt: skip
    return rows


def _answer(probe: Probe, scored: Scored) -> tuple[float, float, float]:
    hits = scored.hits[probe.asked]
    return float(hits.all()), float(hits.mean()), float(scored.losses[probe.asked].mean())


def _mean(rows: Sequence[tuple[float, float, float]], column: int) -> float:
    return float(np.mean([row[column] for row in rows]))


def _interval(gap: NDArray[np.float64], seed: int) -> tuple[float, float]:
    rng = np.random.default_rng(seed)
    means = gap[rng.integers(0, len(gap), (2000, len(gap)))].mean(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)
