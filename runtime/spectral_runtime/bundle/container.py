"""The safetensors container, read and written by ourselves: bounded, checked byte by byte, never copied."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spectral_runtime.bundle.strict_json import parse_json
from spectral_runtime.errors import BundleError

MAX_HEADER_BYTES = 100_000_000
"""The bound of the safetensors library, so that whatever we accept it accepts too."""
ALIGNMENT = 64
"""The writer pads the header so that the data starts on a cache line; readers need only 8."""
DTYPES = {"F32": np.dtype("<f4"), "I32": np.dtype("<i4")}
METADATA_KEY = "__metadata__"

Array = NDArray[Any]
Bytes = NDArray[np.uint8]
Chunk = bytes | memoryview


@dataclass(frozen=True, slots=True)
class _Span:
    """One tensor of the header, its offsets relative to the data."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def decode(file: Bytes, where: str) -> tuple[dict[str, Array], dict[str, str]]:
    """Tensors by name, as read-only views into `file`, and the metadata of the header.

    Args:
        file: uint8, the whole file, usually a memory map.
        where: the start of every message.

    Raises:
        BundleError: the bytes are not a container whose every byte is accounted for.
    """
    start = _data_start(file, where)
    header = file[8:start].tobytes()
    if header[:1] != b"{":
        raise BundleError(f"{where}: header", expected="JSON that begins with '{'", found=repr(header[:1]))
    entries = parse_json(header, f"{where}: header")
    metadata = _metadata(entries.pop(METADATA_KEY, {}), where)
    spans = [_span(name, entry, f"{where}: {name}") for name, entry in entries.items()]
    _refuse_gaps(spans, len(file) - start, where)
    return {span.name: _view(file[start:], span) for span in spans}, metadata


def encode(tensors: Mapping[str, Array], metadata: Mapping[str, str]) -> Iterator[Chunk]:
    """The chunks of a container: header, then the tensors in the order of their names.

    Args:
        tensors: float32 or int32 arrays; the same ones always give the same bytes.
        metadata: strings stored under `__metadata__`.
    """
    arrays = {name: np.ascontiguousarray(tensors[name]) for name in sorted(tensors)}
    yield _header(arrays, metadata)
    for array in arrays.values():
        if array.size:
            little = array.astype(array.dtype.newbyteorder("<"), copy=False)
            yield little.reshape(-1).view(np.uint8).data


def _header(arrays: Mapping[str, Array], metadata: Mapping[str, str]) -> bytes:
    names = {dtype: name for name, dtype in DTYPES.items()}
    entries: dict[str, object] = {METADATA_KEY: dict(sorted(metadata.items()))}
    begin = 0
    for name, array in arrays.items():
        end = begin + array.nbytes
        dtype = names[array.dtype.newbyteorder("<")]
        entries[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def _data_start(file: Bytes, where: str) -> int:
    if len(file) < 8:
        raise BundleError(
            where, expected="at least 8 bytes", found=f"{len(file)}", remedy="the file is truncated"
        )
    length = int.from_bytes(file[:8].tobytes(), "little")
    if length > MAX_HEADER_BYTES:
        raise BundleError(f"{where}: header", expected=f"at most {MAX_HEADER_BYTES} bytes", found=str(length))
    if 8 + length > len(file):
        found = f"{len(file)} bytes in the file"
        raise BundleError(
            f"{where}: header", expected=f"{8 + length} bytes", found=found, remedy="it is truncated"
        )
    if length % 8:
        raise BundleError(f"{where}: header", expected="a length that is a multiple of 8", found=str(length))
    return 8 + length


def _metadata(entry: object, where: str) -> dict[str, str]:
    if not isinstance(entry, dict) or not all(isinstance(value, str) for value in entry.values()):
        raise BundleError(
            f"{where}: {METADATA_KEY}", expected="a mapping of strings", found=type(entry).__name__
        )
    return entry


def _span(name: str, entry: object, where: str) -> _Span:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        found = ", ".join(sorted(entry)) if isinstance(entry, dict) else type(entry).__name__
        raise BundleError(where, expected="dtype, shape and data_offsets", found=found)
    if not isinstance(entry["dtype"], str) or entry["dtype"] not in DTYPES:
        raise BundleError(f"{where}.dtype", expected="F32 or I32", found=repr(entry["dtype"]))
    shape = _naturals(entry["shape"], f"{where}.shape")
    offsets = _naturals(entry["data_offsets"], f"{where}.data_offsets")
    if len(offsets) != 2:
        raise BundleError(f"{where}.data_offsets", expected="begin and end", found=f"{len(offsets)} numbers")
    # Python integers do not overflow: a product beyond any file simply differs from the offsets.
    needed = math.prod(shape) * DTYPES[entry["dtype"]].itemsize
    if offsets[1] - offsets[0] != needed:
        found = f"offsets {offsets[0]} to {offsets[1]}"
        raise BundleError(
            f"{where}.data_offsets", expected=f"{needed} bytes for shape {list(shape)}", found=found
        )
    return _Span(name, entry["dtype"], shape, *offsets)


def _naturals(value: object, where: str) -> tuple[int, ...]:
    # Eight dimensions are more than any tensor has; a product of thousands of them is an attack.
    if isinstance(value, list) and len(value) <= 8 and all(type(x) is int and 0 <= x < 2**63 for x in value):
        return tuple(value)
    raise BundleError(where, expected="a short list of non-negative 64-bit integers", found=repr(value)[:80])


def _refuse_gaps(spans: list[_Span], size: int, where: str) -> None:
    cursor = 0
    for span in sorted(spans, key=lambda span: (span.begin, span.end)):
        if span.begin != cursor:
            kind = "an overlap" if span.begin < cursor else "a hole"
            found = f"{kind}: it begins at {span.begin}"
            raise BundleError(f"{where}: {span.name}", expected=f"data that begins at {cursor}", found=found)
        cursor = span.end
        if cursor > size:
            raise BundleError(
                f"{where}: {span.name}", expected=f"an end within {size} bytes", found=str(cursor)
            )
    if cursor != size:
        found = f"{size - cursor} bytes that belong to no tensor"
        raise BundleError(where, expected=f"data that ends at {cursor}", found=found)


def _view(data: Bytes, span: _Span) -> Array:
    array = data[span.begin : span.end].view(DTYPES[span.dtype]).reshape(span.shape)
    array.flags.writeable = False
    return array
