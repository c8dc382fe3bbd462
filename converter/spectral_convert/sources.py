"""Where text comes from: files, folders, JSON lines, Hub datasets; always as documents with digests, duplicates dropped."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spectral_runtime.errors import TextError

SUFFIXES = (".txt", ".jsonl")
DATASET = re.compile(r"[\w.-]+/[\w.-]+(:[\w.-]*){0,2}")
MAX_ROWS = 50_000
"""Rows read of a Hub dataset: more than any calibration uses, few enough to hold."""

Messages = list[dict[str, str]]
Render = Callable[[Messages], str]
"""Turns a chat into text; the tokenizer's template, or `plain_chat`."""


@dataclass(frozen=True, slots=True)
class Document:
    """One text and the digest it is told apart by."""

    text: str
    sha256: str


def plain_chat(messages: Messages) -> str:
    """A chat as paragraphs, a role before each."""
    return "\n\n".join(f"{message['role']}: {message['content']}" for message in messages)


def read_documents(
    source: str | Path, *, field: str = "text", render: Render = plain_chat
) -> tuple[Document, ...]:
    """Documents of a file, of all `.txt` and `.jsonl` files of a folder, or of a Hub dataset; duplicates dropped.

    Args:
        source: a path, or `owner/name[:config[:split]]` of a dataset where no such path is.
        field: key of the text in JSON lines and dataset rows; a list there is a chat.
        render: turns a chat into text.

    Raises:
        TextError: when nothing readable is there.
    """
    path = Path(source)
    if not path.exists() and isinstance(source, str) and DATASET.fullmatch(source):
        texts: Iterable[str] = _of_dataset(source, field, render)
    else:
        texts = _of_path(path, field, render)
    unique: dict[str, Document] = {}
    for text in texts:
        if text.strip():
            digest = hashlib.sha256(text.encode()).hexdigest()
            unique.setdefault(digest, Document(text, digest))
    if not unique:
        remedy = "give a .txt or .jsonl file, or a folder of them"
        raise TextError(str(path), expected="at least one document", found="no text", remedy=remedy)
    return tuple(unique.values())


def _of_path(path: Path, field: str, render: Render) -> Iterator[str]:
    files = [path]
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.suffix in SUFFIXES and file.is_file())
    for file in files:
        content = _read(file)
        if file.suffix == ".jsonl":
            yield from _of_lines(content, file, field, render)
        else:
            yield from content.split("\f")


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TextError(str(file), expected="a UTF-8 text file", found=str(error)) from error


def _of_lines(content: str, file: Path, field: str, render: Render) -> Iterator[str]:
    for number, line in enumerate(content.splitlines(), start=1):
        if line.strip():
            where = f"{file}:{number}"
            try:
                row = json.loads(line)
            except ValueError as error:
                raise TextError(where, expected="one JSON object a line", found=str(error)) from error
            yield _of_row(row, where, field, render)


def _of_row(row: Any, where: str, field: str, render: Render) -> str:
    keys = row.keys() if isinstance(row, dict) else ()
    key = field if field in keys else "messages"
    if key not in keys:
        found = ", ".join(map(str, keys)) or type(row).__name__
        remedy = "name the right one with --text-field"
        raise TextError(where, expected=f"the key '{field}'", found=found, remedy=remedy)
    value = row[key]
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(
        isinstance(m, dict) and {"role", "content"} <= m.keys() for m in value
    ):
        return render(value)
    raise TextError(
        f"{where}.{key}", expected="text, or messages of role and content", found=type(value).__name__
    )


def _of_dataset(source: str, field: str, render: Render) -> Iterator[str]:
    """Rows of a Hub dataset, streamed: only what is read is downloaded."""
    try:
        from datasets import load_dataset
    except ImportError as error:
        remedy = "pip install datasets, or give a local file"
        raise TextError(
            source, expected="a file, a folder, or the package datasets", found="none", remedy=remedy
        ) from error
    name, config, split = [*source.split(":"), "", ""][:3]
    try:
        rows = load_dataset(name, config or None, split=split or "train", streaming=True)
        for number, row in zip(range(MAX_ROWS), rows, strict=False):
            yield _of_row(row, f"{source}[{number}]", field, render)
    except TextError:
        raise
    except Exception as error:  # the package raises a dozen kinds for one meaning
        reason = str(error).strip().split("\n")[0][:300]
        raise TextError(source, expected="a file, a folder, or a Hub dataset", found=reason) from error
