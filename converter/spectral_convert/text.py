"""Text as documents, disjoint document splits, and windows of tokens; every set carries its digest."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spectral_convert.sources import Document, Messages, Render, plain_chat, read_documents
from spectral_runtime.bundle.manifest import Split
from spectral_runtime.errors import TextError

__all__ = [
    "Document", "TextSet", "Window", "calibration_splits", "pieces_of", "read_documents", "strided_windows", "text_set",
    "tokenise", "training_documents", "whole_text", "windows_of",
]  # fmt: skip

SHARES = {"fit": 0.7, "certify": 0.15, "evaluate": 0.15}
"""Share of the calibration tokens that each split receives."""


READ_WINDOWS = 64
"""Windows are drawn from at most this many times a document's share of its beginning: bounds the tokenising."""
CHARACTERS_A_TOKEN = 4.0
"""Rough, and on the high side: only decides how long documents are cut."""


@dataclass(frozen=True, slots=True)
class Window:
    """Consecutive tokens of one document."""

    document: int
    """Number of the document within its set."""
    ids: tuple[int, ...]
    scored_from: int = 1
    """Position of the first token that counts; those before it are context, scored in an earlier window."""


@dataclass(frozen=True, slots=True)
class TextSet:
    """The windows of some documents, and what identifies them."""

    windows: tuple[Window, ...]
    split: Split


def pieces_of(ids: Sequence[int], length: int) -> list[tuple[int, ...]]:
    """Consecutive runs of at most `length` tokens; a tail of one token predicts nothing and is dropped."""
    pieces = (tuple(ids[start : start + length]) for start in range(0, len(ids), length))
    return [piece for piece in pieces if len(piece) > 1]


def windows_of(ids: Sequence[int], document: int, length: int) -> Iterator[Window]:
    """The windows of one whole document."""
    return (Window(document, piece) for piece in pieces_of(ids, length))


def strided_windows(ids: Sequence[int], document: int, length: int, stride: int) -> Iterator[Window]:
    """Overlapping windows `stride` apart: every token but the first is scored once."""
    for start in range(0, len(ids), stride):
        scored = 1 if start == 0 else length - stride
        piece = tuple(ids[start : start + length])
        if len(piece) > scored:
            yield Window(document, piece, scored)
        if start + length >= len(ids):
            break


def text_set(documents: Sequence[tuple[Document, Sequence[tuple[int, ...]]]]) -> TextSet:
    """Windows and digest of documents already cut into pieces."""
    windows = tuple(Window(i, piece) for i, (_, pieces) in enumerate(documents) for piece in pieces)
    return _identified(windows, [document for document, _ in documents])


def _identified(windows: tuple[Window, ...], documents: Sequence[Document]) -> TextSet:
    digest = hashlib.sha256("".join(sorted(document.sha256 for document in documents)).encode()).hexdigest()
    return TextSet(windows, Split(documents=len(documents), tokens=_distinct_tokens(windows), sha256=digest))


def _distinct_tokens(windows: Sequence[Window]) -> int:
    """A window that starts afresh brings its first token; an overlapping one brings what it scores."""
    return sum(len(w.ids) - (0 if w.scored_from == 1 else w.scored_from) for w in windows)


def tokenise(tokenizer: Any, document: Document, limit: int | None = None) -> list[int]:
    """Token ids of a document, at most `limit`; text far beyond the limit is not tokenised at all."""
    text = document.text if limit is None else document.text[: 16 * limit]
    ids = tokenizer(text, add_special_tokens=True, verbose=False)["input_ids"]
    return list(ids[:limit])


def whole_text(
    tokenizer: Any,
    source: str | Path,
    length: int,
    max_tokens: int | None = None,
    *,
    stride: int | None = None,
) -> TextSet:
    """All documents of a source in their order, cut at `max_tokens`.

    With a `stride` below `length` windows overlap: see `strided_windows`.

    Raises:
        TextError: when no document has two tokens.
    """
    taken: list[tuple[Document, list[int]]] = []
    left = max_tokens
    for document in read_documents(source):
        ids = tokenise(tokenizer, document, left)
        taken.append((document, ids))
        left = None if left is None else left - len(ids)
        if left is not None and left < 2:
            break
    result = _cut(taken, length, stride)
    if not result.windows:
        raise TextError(str(source), expected="a document of two tokens or more", found="none")
    return result


def _cut(documents: Sequence[tuple[Document, list[int]]], length: int, stride: int | None) -> TextSet:
    if stride is None or stride == length:
        return text_set([(document, pieces_of(ids, length)) for document, ids in documents])
    windows = (w for i, (_, ids) in enumerate(documents) for w in strided_windows(ids, i, length, stride))
    return _identified(tuple(windows), [document for document, _ in documents])


def templated(tokenizer: Any) -> Render:
    """Chats through the tokenizer's own template.

    Raises:
        TextError: when it has none.
    """
    if not getattr(tokenizer, "chat_template", None):
        remedy = "leave --chat-template away: base models have none"
        raise TextError("chat_template", expected="a tokenizer with a template", found="none", remedy=remedy)

    def render(messages: Messages) -> str:
        return str(tokenizer.apply_chat_template(messages, tokenize=False))

    return render


def calibration_splits(
    tokenizer: Any,
    source: str | Path,
    *,
    tokens: int,
    length: int,
    seed: int,
    field: str = "text",
    chat_template: bool = False,
) -> dict[str, TextSet]:
    """The fit, certify and evaluate sets: disjoint documents, drawn in seeded order until `tokens` are reached.

    Of a long document, windows are drawn from all over it, and only so many that the budget reaches as many documents
    as it can: breadth is what makes a fit hold on text it has not seen.

    Raises:
        TextError: when there are fewer documents than splits.
    """
    documents = _documents(tokenizer, source, field, chat_template)
    sets = {
        name: text_set(taken) for name, taken in _divide(tokenizer, documents, tokens, length, seed).items()
    }
    _refuse_empty(sets, str(source))
    return sets


def training_documents(
    tokenizer: Any,
    source: str | Path,
    *,
    tokens: int,
    length: int,
    seed: int,
    field: str = "text",
    chat_template: bool = False,
) -> list[list[int]]:
    """Token ids of whole documents that neither the certify nor the evaluate set of the same arguments uses.

    All of the fit set's documents, beyond the windows drawn for the fit, and those that the budget did not reach.
    """
    documents = _documents(tokenizer, source, field, chat_template)
    chosen = _divide(tokenizer, documents, tokens, length, seed)
    kept_out = {document.sha256 for name in ("certify", "evaluate") for document, _ in chosen[name]}
    return [tokenise(tokenizer, document) for document in documents if document.sha256 not in kept_out]


def _documents(tokenizer: Any, source: str | Path, field: str, chat_template: bool) -> list[Document]:
    render = templated(tokenizer) if chat_template else plain_chat
    return list(read_documents(source, field=field, render=render))


Chosen = dict[str, list[tuple[Document, list[tuple[int, ...]]]]]


def _divide(tokenizer: Any, documents: list[Document], tokens: int, length: int, seed: int) -> Chosen:
    """The documents of every set with their windows."""
    documents, rng = list(documents), random.Random(seed)
    rng.shuffle(documents)
    limit = _window_limit(documents, tokens, length)
    chosen: Chosen = {name: [] for name in SHARES}
    sizes = dict.fromkeys(SHARES, 0)
    for document in documents:
        if sum(sizes.values()) >= tokens:
            break
        hungriest = min(SHARES, key=lambda name: sizes[name] / SHARES[name])
        pieces = _draw(
            pieces_of(tokenise(tokenizer, document, READ_WINDOWS * limit * length), length), limit, rng
        )
        chosen[hungriest].append((document, pieces))
        sizes[hungriest] += sum(map(len, pieces))
    return chosen


def _window_limit(documents: Sequence[Document], tokens: int, length: int) -> int:
    """The fewest windows a document that let all documents together fill the budget."""
    sizes = [len(document.text) / CHARACTERS_A_TOKEN for document in documents]
    windows = 1
    while sum(min(size, windows * length) for size in sizes) < tokens and windows * length < max(sizes):
        windows += 1
    return windows


def _draw(pieces: list[tuple[int, ...]], limit: int, rng: random.Random) -> list[tuple[int, ...]]:
    """At most `limit` of the pieces, in their order."""
    return [pieces[i] for i in sorted(rng.sample(range(len(pieces)), min(limit, len(pieces))))]


def _refuse_empty(sets: dict[str, TextSet], source: str) -> None:
    for name, content in sets.items():
        if not content.windows:
            remedy = "give more documents: fit, certify and evaluate use different ones (separate them by a form feed)"
            raise TextError(
                f"{source} ({name} split)", expected="at least one document", found="none", remedy=remedy
            )
