"""Labelled text: windows of tokens that know their domain and their syntactic class."""

from __future__ import annotations

import bisect
import hashlib
import itertools
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spectral_convert.analyse.words import Span, brown_class, untagged_spans
from spectral_convert.sources import read_documents
from spectral_convert.text import Window, windows_of
from spectral_runtime.errors import TextError

MAX_TAGGED_BYTES = 1 << 26
"""A tagged file that unpacks to more is refused: an archive may lie about its size."""


@dataclass(frozen=True, slots=True)
class LabelledDocument:
    """A text with its domain, and the class of each of its pieces."""

    text: str
    domain: str
    spans: tuple[Span, ...]


@dataclass(frozen=True, slots=True)
class LabelledText:
    """Windows of tokens with the labels of every token; arrays are over all windows' tokens in order, [T]."""

    windows: tuple[Window, ...]
    tokens: NDArray[np.int64]
    domains: NDArray[np.int64]
    classes: NDArray[np.int64]
    documents: NDArray[np.int64]
    domain_names: tuple[str, ...]
    class_names: tuple[str, ...]
    tagged: bool
    """Gold tags; False: closed word lists."""
    sha256: str


def plain_documents(sources: Sequence[str | Path]) -> list[LabelledDocument]:
    """The documents of text files; each file, or each .txt of a folder, is one domain named after it."""
    files = [file for source in sources for file in _files(Path(source))]
    return [
        LabelledDocument(document.text, file.stem, tuple(untagged_spans(document.text)))
        for file in files
        for document in read_documents(file)
    ]


def _files(path: Path) -> list[Path]:
    return sorted(path.rglob("*.txt")) if path.is_dir() else [path]


def tagged_documents(archive: str | Path) -> list[LabelledDocument]:
    """The documents of a zip laid out as NLTK's Brown corpus: `word/tag` files and `cats.txt`.

    Raises:
        TextError: not such an archive.
    """
    try:
        with zipfile.ZipFile(archive) as brown:
            return [
                _tagged_document(_member(brown, name), genre)
                for name, genre in sorted(_genres(brown).items())
            ]
    except (OSError, KeyError, zipfile.BadZipFile, UnicodeDecodeError, ValueError) as error:
        expected = "a zip of `word/tag` files with cats.txt, as NLTK distributes the Brown corpus"
        raise TextError(str(archive), expected=expected, found=str(error)) from error


def _genres(brown: zipfile.ZipFile) -> dict[str, str]:
    listing = next((name for name in brown.namelist() if name.endswith("cats.txt")), None)
    if listing is None:
        raise KeyError("no cats.txt")
    folder = listing.removesuffix("cats.txt")
    rows = [line.split() for line in _member(brown, listing).splitlines() if line.strip()]
    return {folder + row[0]: row[1] for row in rows if len(row) == 2}


def _member(brown: zipfile.ZipFile, name: str) -> str:
    with brown.open(name) as file:
        data = file.read(MAX_TAGGED_BYTES + 1)
    if len(data) > MAX_TAGGED_BYTES:
        raise ValueError(f"{name} is larger than {MAX_TAGGED_BYTES} bytes")
    return data.decode("utf-8")


_NO_SPACE_BEFORE = {".", ",", ";", ":", "?", "!", ")", "''", "]", "'"}
_NO_SPACE_AFTER = {"(", "``", "["}


def _tagged_document(content: str, genre: str) -> LabelledDocument:
    """Words joined as they would be printed, so that the model reads ordinary prose."""
    parts: list[str] = []
    spans: list[Span] = []
    length, glued = 0, True
    for line in content.splitlines():
        for item in line.split():
            word, _, tag = item.rpartition("/")
            if not word:
                continue
            gap = "" if glued or word in _NO_SPACE_BEFORE else " "
            shown = '"' if word in {"``", "''"} else word
            parts.append(gap + shown)
            spans.append((length + len(gap), length + len(gap) + len(shown), brown_class(tag)))
            length += len(gap) + len(shown)
            glued = word in _NO_SPACE_AFTER
        if parts and line.strip():
            parts.append("\n")
            length, glued = length + 1, True
    return LabelledDocument("".join(parts), genre, tuple(spans))


def label_text(
    tokenizer: Any,
    documents: Sequence[LabelledDocument],
    *,
    length: int,
    max_tokens: int | None = None,
    tagged: bool = False,
) -> LabelledText:
    """Windows and labels; with a limit, every domain gets the same share of it.

    Raises:
        TextError: no tokens, or a tokenizer without character offsets.
    """
    if not getattr(tokenizer, "is_fast", False):
        remedy = "use a checkpoint with tokenizer.json"
        raise TextError("tokenizer", expected="character offsets", found="a slow tokenizer", remedy=remedy)
    domains = tuple(dict.fromkeys(document.domain for document in documents))
    share = None if max_tokens is None else max(2, max_tokens // max(len(domains), 1))
    rows = list(_tokenised(tokenizer, documents, length, share))
    if not rows:
        raise TextError("text", expected="a document of two tokens or more", found="none")
    names = tuple(sorted({name for _, classes, _ in rows for name in classes}))
    number = {name: i for i, name in enumerate(names)}
    windows = tuple(window for window, _, _ in rows)
    sizes = [len(window.ids) for window in windows]
    return LabelledText(
        windows=windows,
        tokens=np.fromiter(itertools.chain.from_iterable(w.ids for w in windows), np.int64, sum(sizes)),
        domains=np.repeat([domains.index(domain) for _, _, domain in rows], sizes),
        classes=np.array([number[name] for _, classes, _ in rows for name in classes], np.int64),
        documents=np.repeat([w.document for w in windows], sizes),
        domain_names=domains,
        class_names=names,
        tagged=tagged,
        sha256=_digest(documents),
    )


def _digest(documents: Sequence[LabelledDocument]) -> str:
    each = sorted(hashlib.sha256(document.text.encode()).hexdigest() for document in documents)
    return hashlib.sha256("".join(each).encode()).hexdigest()


def _tokenised(
    tokenizer: Any, documents: Sequence[LabelledDocument], length: int, share: int | None
) -> Iterator[tuple[Window, list[str], str]]:
    left: dict[str, int] = {}
    many = Counter(document.domain for document in documents)
    for number, document in enumerate(documents):
        budget = left.setdefault(document.domain, share) if share is not None else None
        if budget is not None and budget < 2:
            continue
        if budget is not None and share is not None:
            # Many documents say more about a domain than one long one.
            budget = min(budget, max(length, share // many[document.domain]))
        text = document.text if budget is None else document.text[: 16 * budget]
        encoded = tokenizer(text, add_special_tokens=True, return_offsets_mapping=True, verbose=False)
        ids, offsets = encoded["input_ids"][:budget], encoded["offset_mapping"][:budget]
        classes = list(token_classes(text, offsets, document.spans))
        if budget is not None:
            left[document.domain] -= len(ids)
        start = 0
        for window in windows_of(ids, number, length):
            yield window, classes[start : start + len(window.ids)], document.domain
            start += len(window.ids)


def token_classes(text: str, offsets: Sequence[tuple[int, int]], spans: Sequence[Span]) -> Iterator[str]:
    """The class of every token: that of the piece its first visible character lies in, or `space`."""
    starts = [start for start, _, _ in spans]
    for begin, end in offsets:
        piece = text[begin:end]
        first = begin + len(piece) - len(piece.lstrip())
        if first >= end:
            yield "space"
            continue
        at = bisect.bisect_right(starts, first) - 1
        yield spans[at][2] if at >= 0 and first < spans[at][1] else "space"
