"""Checks ONNX models and puts them into a folder, with external data above a size."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx

from spectral_runtime.errors import ConfigError, InternalError

INLINE_BYTES = 64 * 2**20
"""Tensors of a model up to this size stay in its file; protobuf itself ends at 2 GB."""
SHARED_BYTES = 1024
"""Smaller tensors stay in the graph: shape inference needs to read some of them."""
RECORD = "export.json"


@contextmanager
def new_folder(out: str | Path, overwrite: bool = False) -> Iterator[Path]:
    """A sibling folder to write into, renamed to `out` when the block ends well and removed when not.

    Raises:
        ConfigError: something is at `out` that may not be replaced: only an earlier export is.
    """
    target = Path(out).expanduser().resolve()
    _refuse_existing(target, overwrite)
    target.parent.mkdir(parents=True, exist_ok=True)
    sibling = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        yield sibling
        sibling.chmod(0o777 & ~_umask())
        if target.exists():
            shutil.rmtree(target)
        sibling.rename(target)
    finally:
        shutil.rmtree(sibling, ignore_errors=True)


def _refuse_existing(target: Path, overwrite: bool) -> None:
    if not os.path.lexists(target) or (target.is_dir() and not any(target.iterdir())):
        return
    if not overwrite:
        remedy = "give another folder, or overwrite it (--overwrite)"
        raise ConfigError(str(target), expected="a new folder", found="one that exists", remedy=remedy)
    if not (target / RECORD).is_file():
        remedy = "only an earlier export is ever overwritten: give another folder"
        raise ConfigError(
            str(target), expected=f"a folder with {RECORD}", found="something else", remedy=remedy
        )


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def save_model(model: onnx.ModelProto, path: Path) -> None:
    """Writes and checks a model; its tensors go to `{name}.data` beside it when they are large.

    Raises:
        InternalError: the checker or shape inference refuses what we built.
    """
    size = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
    if size > INLINE_BYTES:
        onnx.save(
            model,
            path,
            save_as_external_data=True,
            location=f"{path.name}.data",
            size_threshold=SHARED_BYTES,
            convert_attribute=False,
        )
    else:
        onnx.save(model, path)
    try:
        # By path: the checker refuses models above 2 GB in memory.
        onnx.checker.check_model(path, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InternalError(path.name, expected="a valid ONNX model", found=reason) from error


def write_record(folder: Path, record: Mapping[str, Any]) -> None:
    """Writes `export.json`: what was exported, from what, with which settings."""
    text = json.dumps(record, indent=1, allow_nan=False, ensure_ascii=False)
    (folder / RECORD).write_text(text + "\n", encoding="utf-8")
