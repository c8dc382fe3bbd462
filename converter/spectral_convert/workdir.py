"""The work folder: every finished piece of a conversion under the digest of what it was made from, written whole."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

T = TypeVar("T")
LAYOUT = 3
"""Moves when what is stored changes: older pieces are then made again."""
logger = logging.getLogger(__name__)


def digest_of(*parts: Any) -> str:
    """SHA-256 over the canonical JSON of its parts; dataclasses count by their fields."""
    text = json.dumps([LAYOUT, *parts], sort_keys=True, default=_plain, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    return str(value)


class WorkDir:
    """Pieces of a conversion in a folder; a piece is there whole or not at all."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob("*.part"):
            left.unlink(missing_ok=True)

    def save(self, stage: str, key: str, tensors: Mapping[str, torch.Tensor], facts: Any) -> None:
        """Stores tensors and JSON facts; the file appears under its name only when it is complete."""
        path = self._path(stage, key)
        part = path.with_suffix(f".{os.getpid()}.part")
        whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
        save_file(whole, part, metadata={"facts": json.dumps(facts, sort_keys=True)})
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        part.replace(path)

    def load(self, stage: str, key: str) -> tuple[dict[str, torch.Tensor], Any] | None:
        """What `save` stored, or None; a damaged file counts as absent."""
        path = self._path(stage, key)
        if not path.is_file():
            return None
        try:
            with safe_open(str(path), framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                facts = json.loads(file.metadata()["facts"])
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as fault:
            logger.warning("%s is damaged and made again: %s", path, fault)
            return None
        logger.info("%s %s is taken from %s", stage, key[:12], self.folder)
        return tensors, facts

    def _path(self, stage: str, key: str) -> Path:
        return self.folder / f"{stage}-{key[:32]}.safetensors"


def pack(name: str, value: Any) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """A flat dataclass as tensors and plain facts, their keys led by `name`."""
    tensors, facts = {}, {}
    for field in dataclasses.fields(value):
        content, key = getattr(value, field.name), f"{name}.{field.name}"
        if isinstance(content, np.ndarray):
            tensors[key] = torch.from_numpy(np.ascontiguousarray(content))
        elif torch.is_tensor(content):
            tensors[key] = content
        else:
            facts[key] = content
    return tensors, facts


def unpack(kind: type[T], name: str, tensors: Mapping[str, torch.Tensor], facts: Mapping[str, Any]) -> T:
    """The dataclass that `pack` took apart; its arrays are numpy's."""
    values: dict[str, Any] = {}
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        key = f"{name}.{field.name}"
        values[field.name] = tensors[key].numpy() if key in tensors else facts[key]
    return kind(**values)
