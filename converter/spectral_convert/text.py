"""Text as documents, disjoint document splits, and windows of tokens; every set carries its digest."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spectral_runtime.bundle.manifest import Split
from spectral_runtime.errors import TextError

SHARES = {"fit": 0.6, "certify": 0.2, "evaluate": 0.2}
"""Share of the calibration tokens that each split receives."""


CHARACTERS_A_TOKEN = 4.0
"""Rough, and on the high side: only decides how long documents are cut."""


@dataclass(frozen=True, slots=True)
class Document:
    """One text and the digest it is told apart by."""

    text: str
    sha256: str


@dataclass(frozen=True, slots=True)
class Window:
    """Consecutive tokens of one document."""

    document: int
    """Number of the document within its set."""
    ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TextSet:
    """The windows of some documents, and what identifies them."""

    windows: tuple[Window, ...]
    split: Split


def read_documents(source: str | Path) -> tuple[Document, ...]:
    """Documents of a file, or of all `*.txt` files of a folder; separated by a form feed, duplicates dropped.

    Raises:
        TextError: when nothing readable is there.
    """
    path = Path(source)
    files = sorted(path.rglob("*.txt")) if path.is_dir() else [path]
    unique: dict[str, Document] = {}
    for file in files:
        for text in _read(file).split("\f"):
            if text.strip():
                digest = hashlib.sha256(text.encode()).hexdigest()
                unique.setdefault(digest, Document(text, digest))
    if not unique:
        raise TextError(
            str(path), expected="at least one document", found="no text", remedy="give a .txt file or folder"
        )
    return tuple(unique.values())


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TextError(str(file), expected="a UTF-8 text file", found=str(error)) from error


def windows_of(ids: Sequence[int], document: int, length: int) -> Iterator[Window]:
    """Non-overlapping windows of at most `length` tokens; a tail of one token predicts nothing and is dropped."""
    for start in range(0, len(ids), length):
        piece = tuple(ids[start : start + length])
        if len(piece) > 1:
            yield Window(document, piece)


def text_set(documents: Sequence[tuple[Document, Sequence[int]]], length: int) -> TextSet:
    """Windows and digest of tokenised documents."""
    windows = tuple(w for i, (_, ids) in enumerate(documents) for w in windows_of(ids, i, length))
    digest = hashlib.sha256("".join(sorted(doc.sha256 for doc, _ in documents)).encode()).hexdigest()
    return TextSet(
        windows, Split(documents=len(documents), tokens=sum(len(w.ids) for w in windows), sha256=digest)
    )


def tokenise(tokenizer: Any, document: Document, limit: int | None = None) -> list[int]:
    """Token ids of a document, at most `limit`; text far beyond the limit is not tokenised at all."""
    text = document.text if limit is None else document.text[: 16 * limit]
    ids = tokenizer(text, add_special_tokens=True, verbose=False)["input_ids"]
    return list(ids[:limit])


def whole_text(tokenizer: Any, source: str | Path, length: int, max_tokens: int | None = None) -> TextSet:
    """All documents of a source in their order, cut at `max_tokens`.

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
    result = text_set(taken, length)
    if not result.windows:
        raise TextError(str(source), expected="a document of two tokens or more", found="none")
    return result


def calibration_splits(
    tokenizer: Any, source: str | Path, *, tokens: int, length: int, seed: int
) -> dict[str, TextSet]:
    """The fit, certify and evaluate sets: disjoint documents, drawn in seeded order until `tokens` are reached.

    Long documents are cut so that the budget reaches as many documents as it can: breadth is what makes a fit hold
    on text it has not seen.

    Raises:
        TextError: when there are fewer documents than splits.
    """
    documents = list(read_documents(source))
    random.Random(seed).shuffle(documents)
    limit = _document_limit(documents, tokens, length)
    chosen: dict[str, list[tuple[Document, list[int]]]] = {name: [] for name in SHARES}
    sizes = dict.fromkeys(SHARES, 0)
    for document in documents:
        if sum(sizes.values()) >= tokens:
            break
        hungriest = min(SHARES, key=lambda name: sizes[name] / SHARES[name])
        ids = tokenise(tokenizer, document, limit)
        chosen[hungriest].append((document, ids))
        sizes[hungriest] += len(ids)
    sets = {name: text_set(taken, length) for name, taken in chosen.items()}
    _refuse_empty(sets, str(source))
    return sets


def _document_limit(documents: Sequence[Document], tokens: int, length: int) -> int:
    """The fewest whole windows a document that let all documents together fill the budget."""
    sizes = [len(document.text) / CHARACTERS_A_TOKEN for document in documents]
    windows = 1
    while sum(min(size, windows * length) for size in sizes) < tokens and windows * length < max(sizes):
        windows += 1
    return windows * length


def _refuse_empty(sets: dict[str, TextSet], source: str) -> None:
    for name, content in sets.items():
        if not content.windows:
            remedy = "give more documents: fit, certify and evaluate use different ones (separate them by a form feed)"
            raise TextError(
                f"{source} ({name} split)", expected="at least one document", found="none", remedy=remedy
            )
