"""The safetensors shards of a checkpoint: names, shapes and places from their headers, tensors on demand."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spectral_runtime.errors import ModelError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
MAX_HEADER = 100_000_000
BYTES = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "BF16": 2, "F16": 2, "I16": 2, "F8_E4M3": 1, "F8_E5M2": 1,
         "F8_E8M0": 1, "U8": 1, "I8": 1, "BOOL": 1, "F4": 0.5}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Stored:
    """One tensor of a checkpoint."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int = 0
    """Of its first byte in the file."""

    @property
    def numel(self) -> int:
        """Elements."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """Size on disk."""
        return int(self.numel * BYTES.get(self.dtype, 4))


def shard_files(folder: Path) -> list[Path]:
    """The shards of a local checkpoint folder.

    Raises:
        ModelError: none, or one that the index names is missing.
    """
    index = folder / INDEX
    names = [SINGLE]
    if index.is_file():
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    for name in names:
        if not (folder / name).is_file():
            remedy = "download every shard, or point at the folder that holds them"
            raise ModelError(str(folder), expected=f"the shard {name}", found="no such file", remedy=remedy)
    return [folder / name for name in names]


def read_headers(files: list[Path]) -> dict[str, Stored]:
    """Name to place of every tensor, from the headers alone.

    Raises:
        ModelError: a file is not safetensors.
    """
    found = {}
    for file in files:
        start, header = read_header(file)
        for name, entry in header.items():
            found[name] = Stored(
                file, entry["dtype"], tuple(entry["shape"]), start + entry["data_offsets"][0]
            )
    return found


def of_metadata(files: Mapping[str, Mapping[str, Any]]) -> dict[str, Stored]:
    """The same from what the Hub's client parsed: file name to tensor name to dtype, shape and offsets."""
    return {
        name: Stored(Path(file), tensor.dtype, tuple(tensor.shape))
        for file, tensors in files.items()
        for name, tensor in tensors.items()
    }


def read_header(file: Path) -> tuple[int, dict[str, Any]]:
    """Where the data of one safetensors file begins, and its header without the metadata.

    Raises:
        ModelError: the file is not safetensors.
    """
    try:
        with file.open("rb") as stream:
            size = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(size)) if 0 < size <= MAX_HEADER else None
    except (OSError, ValueError) as error:
        raise ModelError(str(file), expected="a safetensors file", found=str(error)) from error
    if not isinstance(header, dict):
        raise ModelError(str(file), expected="a safetensors header", found=f"{size} bytes announced")
    return 8 + size, {name: entry for name, entry in header.items() if name != "__metadata__"}
