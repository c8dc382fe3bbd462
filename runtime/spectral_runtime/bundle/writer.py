"""Writes a bundle: the same content gives the same bytes, and a folder is replaced whole or not at all."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import secrets
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from spectral_runtime.bundle.container import encode
from spectral_runtime.bundle.contents import Bundle, LayerTensors, arrays_of, tensor_name
from spectral_runtime.bundle.layer_rules import check_table
from spectral_runtime.bundle.locate import FOLDER, MANIFEST_FILE
from spectral_runtime.bundle.manifest import FORMAT_VERSION, FileEntry, Manifest
from spectral_runtime.bundle.manifest_rules import TENSOR_FILE, check_file_names
from spectral_runtime.bundle.reader import VERSION_KEY, read_bundle
from spectral_runtime.bundle.strict_json import format_json
from spectral_runtime.errors import BundleError, ConfigError, InternalError

CARD_FILE = "README.md"
EVIDENCE_FOLDER = "evidence"
METADATA = {"format": "pt", VERSION_KEY: str(FORMAT_VERSION)}

Chunks = Iterable[bytes | memoryview]


def write_bundle(
    path: str | os.PathLike[str],
    manifest: Manifest,
    layers: Sequence[LayerTensors],
    *,
    evidence: Mapping[str, object] | None = None,
    card: str | None = None,
    overwrite: bool = False,
    carry: Mapping[str, str | os.PathLike[str]] | None = None,
) -> Bundle:
    """Writes the folder `path`: `spectral/` with tensors, manifest and evidence, and the card beside it.

    Everything is written to a sibling, flushed, read back and validated, then renamed: an error, a full disk
    or an interruption leaves what was there before.

    Args:
        path: the folder to make; its parents are made too.
        manifest: `files` is filled in here, whatever it holds.
        layers: one per entry of `manifest.layers`, in that order.
        evidence: name to JSON value, stored as `spectral/evidence/{name}.json`.
        card: the text of `README.md`.
        overwrite: replace a bundle that is there.
        carry: name in the folder to the file it comes from: base weights, files of the old folder that stay.

    Returns:
        The bundle as it now is on disk, arrays mapped from it.

    Raises:
        ConfigError: there is something at `path` that may not be replaced.
        BundleError: the disk refused.
        InternalError: the content breaks a rule of the format.
    """
    carried = {name: Path(source) for name, source in (carry or {}).items()}
    _refuse_names(carried, card is not None)
    target = check_target(path, overwrite=overwrite, carry=carried)
    files = _files(manifest, layers, evidence or {})
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _sibling(target) as fresh:
            _fill(fresh, manifest, files, card)
            _carry(fresh, target, carried)
            bundle = _read_back(fresh)
            _flush_folders(fresh)
            _swap(fresh, target)
    except OSError as fault:
        remedy = "nothing was changed: make room or give another folder"
        raise BundleError(
            str(target), expected="a folder that can be written", found=_reason(fault), remedy=remedy
        ) from fault
    return dataclasses.replace(bundle, path=target / FOLDER)


def check_target(
    path: str | os.PathLike[str], *, overwrite: bool = False, carry: Collection[str] = ()
) -> Path:
    """The absolute folder that `write_bundle` would make, so that a long job can refuse it before it starts.

    Raises:
        ConfigError: there is something at `path` that may not be replaced.
    """
    target = Path(path).expanduser().resolve()
    try:
        _refuse_existing(target, overwrite, carry)
    except OSError as fault:
        raise ConfigError(
            str(target), expected="a folder that can be written", found=_reason(fault)
        ) from fault
    return target


def _reason(fault: OSError) -> str:
    return f"{fault.strerror or fault} ({fault.filename})" if fault.filename else str(fault.strerror or fault)


def _refuse_names(carried: Mapping[str, Path], has_card: bool) -> None:
    check_file_names(carried, "carry")
    for name, source in carried.items():
        if name == FOLDER or name.startswith(f"{FOLDER}/") or (has_card and name == CARD_FILE):
            raise ConfigError(
                f"carry: {name}", expected="a name that the bundle does not use", found="one it writes"
            )
        if not source.is_file():
            raise ConfigError(f"carry: {name}", expected="a file", found=f"nothing at {source}")


def _refuse_existing(target: Path, overwrite: bool, carried: Collection[str]) -> None:
    if not os.path.lexists(target) or (target.is_dir() and not any(target.iterdir())):
        return
    if not target.is_dir():
        raise ConfigError(str(target), expected="a folder", found="a file", remedy="give another path")
    if not overwrite:
        remedy = "give another folder, or overwrite it (--overwrite)"
        raise ConfigError(str(target), expected="a new folder", found="one that exists", remedy=remedy)
    if not (target / FOLDER / MANIFEST_FILE).is_file():
        remedy = "only a bundle is ever overwritten: give another folder"
        raise ConfigError(str(target), expected=f"{FOLDER}/{MANIFEST_FILE}", found="no bundle", remedy=remedy)
    foreign = [name for name in _relative_files(target) if name not in carried and not _is_ours(name)]
    if foreign:
        shown = ", ".join(foreign[:8]) + (f" and {len(foreign) - 8} more" if len(foreign) > 8 else "")
        remedy = "move them away, or name them in `carry`"
        raise ConfigError(str(target), expected="only a bundle's files", found=shown, remedy=remedy)


def _relative_files(target: Path) -> list[str]:
    return sorted(
        found.relative_to(target).as_posix()
        for found in target.rglob("*")
        if found.is_symlink() or not found.is_dir()
    )


def _is_ours(name: str) -> bool:
    inside = name.removeprefix(f"{FOLDER}/")
    evidence = (
        inside.startswith(f"{EVIDENCE_FOLDER}/") and inside.endswith(".json") and inside.count("/") == 1
    )
    return name == CARD_FILE or (inside != name and (inside in (TENSOR_FILE, MANIFEST_FILE) or evidence))


def _files(
    manifest: Manifest, layers: Sequence[LayerTensors], evidence: Mapping[str, object]
) -> dict[str, Chunks]:
    """Relative path in `spectral/` to content, for every file but the manifest."""
    if tuple(layer.entry for layer in layers) != manifest.layers:
        raise InternalError("write_bundle", expected="one layer per manifest entry, in order", found="others")
    tensors: dict[str, NDArray[Any]] = {}
    try:
        for index, layer in enumerate(layers):
            arrays = arrays_of(layer)
            check_table(layer.entry, arrays, f"layers.{index}")
            tensors |= {tensor_name(index, name): array for name, array in arrays.items()}
        names = {f"{EVIDENCE_FOLDER}/{name}.json": value for name, value in evidence.items()}
        check_file_names(names, "evidence")
    except BundleError as fault:
        raise InternalError(f"refusing to write: {fault}") from fault
    return {TENSOR_FILE: encode(tensors, METADATA)} | {
        name: (_json(value, name),) for name, value in names.items()
    }


def _json(value: object, where: str) -> bytes:
    try:
        return format_json(value)
    except (TypeError, ValueError) as fault:
        raise InternalError(where, expected="values that JSON can hold", found=str(fault)) from fault


@contextmanager
def _sibling(target: Path) -> Iterator[Path]:
    """A new folder beside `target`, so that a rename suffices; gone at the end whatever happens."""
    fresh = target.with_name(f".{target.name}.{secrets.token_hex(4)}.partial")
    try:
        fresh.mkdir()
        yield fresh
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _fill(fresh: Path, manifest: Manifest, files: Mapping[str, Chunks], card: str | None) -> None:
    folder = fresh / FOLDER
    entries = {name: _write(folder / name, chunks) for name, chunks in sorted(files.items())}
    complete = dataclasses.replace(manifest, files=entries)
    _write(folder / MANIFEST_FILE, (_json(dataclasses.asdict(complete), MANIFEST_FILE),))
    if card is not None:
        _write(fresh / CARD_FILE, (card.encode("utf-8"),))


def _write(path: Path, chunks: Chunks) -> FileEntry:
    path.parent.mkdir(parents=True, exist_ok=True)
    digest, size = hashlib.sha256(), 0
    with path.open("xb") as file:
        for chunk in chunks:
            digest.update(chunk)
            size += file.write(chunk)
        file.flush()
        os.fsync(file.fileno())
    return FileEntry(bytes=size, sha256=digest.hexdigest())


def _carry(fresh: Path, target: Path, carried: Mapping[str, Path]) -> None:
    for name, source in carried.items():
        (fresh / name).parent.mkdir(parents=True, exist_ok=True)
        _copy(source, fresh / name, share=source.resolve().is_relative_to(target))
        _flush(fresh / name)


def _copy(source: Path, copy: Path, *, share: bool) -> None:
    # A file that only moves from the old folder to the new one keeps its blocks, where the disk has links.
    with suppress(OSError):
        if share:
            os.link(source.resolve(), copy)
            return
    shutil.copyfile(source, copy)


def _read_back(fresh: Path) -> Bundle:
    try:
        return read_bundle(fresh / FOLDER)
    except BundleError as fault:
        raise InternalError(f"refusing to write: {fault}") from fault


def _flush_folders(fresh: Path) -> None:
    for folder in (fresh, *(found for found in fresh.rglob("*") if found.is_dir())):
        _flush(folder)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _swap(fresh: Path, target: Path) -> None:
    """Puts `fresh` in the place of `target`; what was there comes back if that fails."""
    previous = fresh.with_suffix(".previous")
    try:
        if target.exists():
            target.replace(previous)
        fresh.replace(target)
    except BaseException:
        if previous.exists() and not target.exists():
            previous.replace(target)
        raise
    finally:
        if target.exists():
            shutil.rmtree(previous, ignore_errors=True)
    with suppress(OSError):  # the new bundle is in place: too late to call it a failure
        _flush(target.parent)
