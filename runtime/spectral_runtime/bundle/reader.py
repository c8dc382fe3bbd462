"""Reads a bundle: bounded, everything validated before anything is used, arrays mapped and never copied."""

from __future__ import annotations

import hashlib
import mmap
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spectral_runtime.bundle.container import decode
from spectral_runtime.bundle.contents import Bundle, LayerTensors, layer_of, tensor_name
from spectral_runtime.bundle.layer_rules import check_finite, check_layer, check_table
from spectral_runtime.bundle.locate import MANIFEST_FILE, locate_bundle
from spectral_runtime.bundle.manifest import FORMAT_VERSION, FileEntry, LayerEntry, Manifest
from spectral_runtime.bundle.manifest_rules import TENSOR_FILE, check_manifest
from spectral_runtime.bundle.strict_json import parse_json
from spectral_runtime.errors import BundleError
from spectral_runtime.strict import parse

MAX_MANIFEST_BYTES = 16 * 2**20
VERSION_KEY = "spectral_format"

Array = NDArray[Any]


def load_bundle(
    source: str | os.PathLike[str],
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
) -> Bundle:
    """The bundle at `source`: a folder, a folder with `spectral/` in it, or a Hub id; a folder always wins.

    Args:
        source: the folder or the id.
        revision: branch, tag or commit on the Hub.
        token: Hub token; None uses the one of the login.
        cache_dir: where the Hub keeps downloads; None is its own default.
        local_files_only: never go to the network.

    Returns:
        A validated bundle, whose arrays are read-only float32 and int32 views of the mapped file.

    Raises:
        BundleError: it is not there, or breaks one of the rules of FORMAT.md.
    """
    folder = locate_bundle(
        source, revision=revision, token=token, cache_dir=cache_dir, local_files_only=local_files_only
    )
    try:
        return read_bundle(folder)
    except OSError as fault:
        raise BundleError(
            str(folder), expected="readable files", found=fault.strerror or str(fault)
        ) from fault


def read_bundle(folder: Path) -> Bundle:
    """The validated bundle of a local folder that holds `spectral_config.json`; OSError passes through."""
    manifest = read_manifest(folder / MANIFEST_FILE)
    tensors: bytes | mmap.mmap = b""
    for name, entry in sorted(manifest.files.items()):
        data = _verified(folder, name, entry)
        if name == TENSOR_FILE:
            tensors = data
    where = str(folder / TENSOR_FILE)
    arrays, metadata = decode(np.frombuffer(tensors, dtype=np.uint8), where)
    if metadata.get(VERSION_KEY) != str(FORMAT_VERSION):
        found = ascii(metadata.get(VERSION_KEY))[:80]
        raise BundleError(f"{where}: {VERSION_KEY}", expected=repr(str(FORMAT_VERSION)), found=found)
    return Bundle(path=folder, manifest=manifest, layers=_layers(manifest, arrays, where))


def read_manifest(path: Path) -> Manifest:
    """The checked manifest in a file; a newer format version is refused before its keys are judged."""
    with path.open("rb") as file:
        data = file.read(MAX_MANIFEST_BYTES + 1)
    if len(data) > MAX_MANIFEST_BYTES:
        raise BundleError(str(path), expected=f"at most {MAX_MANIFEST_BYTES} bytes", found="more")
    value = parse_json(data, str(path))
    version = value.get("format_version") if isinstance(value, dict) else None
    if type(version) is int and version > FORMAT_VERSION:
        remedy = "upgrade the package spectral-moe"
        raise BundleError(
            str(path), expected=f"format {FORMAT_VERSION}", found=f"format {version}", remedy=remedy
        )
    manifest = parse(Manifest, value, where=str(path), error=BundleError)
    if manifest.format_version != FORMAT_VERSION:
        raise BundleError(
            str(path), expected=f"format {FORMAT_VERSION}", found=f"format {manifest.format_version}"
        )
    check_manifest(manifest, str(path))
    return manifest


def _verified(folder: Path, name: str, entry: FileEntry) -> bytes | mmap.mmap:
    """The mapped bytes of a listed file, after its size and digest were compared."""
    path = folder / name
    where = str(path)
    if not path.is_file():  # a pipe or a device would block
        raise BundleError(where, expected="the file that the manifest lists", found="no regular file")
    _refuse_escape(folder, path)
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size != entry.bytes:
            remedy = "it is truncated or altered: copy or download it again"
            raise BundleError(where, expected=f"{entry.bytes} bytes", found=f"{size}", remedy=remedy)
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b""
    digest = hashlib.sha256(data).hexdigest()
    if digest != entry.sha256:
        remedy = "it is damaged or altered: copy or download it again"
        raise BundleError(where, expected=f"sha256 {entry.sha256[:80]}", found=digest, remedy=remedy)
    return data


def _refuse_escape(folder: Path, path: Path) -> None:
    """A link may lead within the bundle, or from a snapshot of the Hub's cache to the blobs beside it."""
    real, home = path.resolve(), folder.resolve()
    caches = [parent.parent / "blobs" for parent in home.parents if parent.name == "snapshots"]
    if not any(real.is_relative_to(root) for root in (home, *caches)):
        raise BundleError(str(path), expected="a file inside the bundle", found=f"a link to {real}")


def _layers(manifest: Manifest, arrays: dict[str, Array], where: str) -> tuple[LayerTensors, ...]:
    grouped: list[dict[str, Array]] = [{} for _ in manifest.layers]
    prefixes = {f"{index}": group for index, group in enumerate(grouped)}
    for full, array in arrays.items():
        kind, _, rest = full.partition(".")
        index, _, name = rest.partition(".")
        if kind != "layers" or index not in prefixes or not name:
            found = ascii(full)[:120]
            raise BundleError(
                where, expected="tensors of the manifest's layers", found=f"an extra tensor {found}"
            )
        prefixes[index][name] = array
    entries = zip(manifest.layers, grouped, strict=True)
    return tuple(_layer(i, entry, group, f"{where}: ") for i, (entry, group) in enumerate(entries))


def _layer(index: int, entry: LayerEntry, arrays: dict[str, Array], where: str) -> LayerTensors:
    prefix = where + tensor_name(index, "")[:-1]
    check_table(entry, arrays, prefix)
    check_finite(arrays, prefix)
    layer = layer_of(entry, arrays)
    check_layer(layer, arrays.get("radii"), prefix)
    return layer
