"""Evidence files: what a command measured, with the protocol that makes two of them comparable."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import spectral_runtime
from spectral_runtime.errors import ConfigError

MAX_BYTES = 1 << 28


def write_evidence(path: str | Path, kind: str, record: dict[str, Any]) -> None:
    """Writes one record beside and renames it, so that no half-written evidence is ever read.

    Args:
        path: of the JSON file; missing folders are made.
        kind: which command measured it, such as `evaluate`.
        record: JSON values only, no NaN.
    """
    target = Path(path)
    content = {"kind": kind, "spectral": spectral_runtime.__version__, **record}
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.{os.getpid()}")
        temporary.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        temporary.replace(target)
    except OSError as error:
        raise ConfigError(str(path), expected="a file that can be written", found=str(error)) from error


def read_evidence(path: str | Path) -> dict[str, Any]:
    """One record.

    Raises:
        ConfigError: not a JSON object.
    """
    file = Path(path)
    try:
        if file.stat().st_size > MAX_BYTES:
            raise ValueError(f"more than {MAX_BYTES} bytes")
        record = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(str(path), expected="an evidence file in JSON", found=str(error)) from error
    if not isinstance(record, dict):
        raise ConfigError(str(path), expected="a JSON object", found=type(record).__name__)
    return record
