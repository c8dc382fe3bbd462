"""Ways to break the tensor file itself: its header, its offsets, its table."""

from __future__ import annotations

import json

from bundles.damage import Draft, refused

BETA = "layers.0.beta"


@refused(r"header: expected \d+ bytes, found 100 bytes in the file")
def truncated_header(draft: Draft) -> None:
    text = draft.header_text()
    draft.file = (len(text).to_bytes(8, "little") + text)[:100]


@refused("expected at least 8 bytes, found 3")
def shorter_than_a_length(draft: Draft) -> None:
    draft.file = b"\x10\x00\x00"


@refused("header: expected at most 100000000 bytes, found 1099511627776")
def oversized_header(draft: Draft) -> None:
    draft.file = (2**40).to_bytes(8, "little") + draft.header_text()


@refused("header: expected a length that is a multiple of 8")
def unaligned_header(draft: Draft) -> None:
    draft.use_header(draft.header_text() + b" ")


@refused("header: expected UTF-8 JSON, found Expecting property name")
def header_not_json(draft: Draft) -> None:
    draft.use_header(b"{no json at all}")


@refused(r"header: expected JSON that begins with '\{'")
def header_not_an_object(draft: Draft) -> None:
    draft.use_header(b"[1, 2]  ")


@refused("header: expected UTF-8 JSON, found 'utf-8' codec")
def header_not_utf8(draft: Draft) -> None:
    draft.use_header(b'{"\xff\xfe":1}')


@refused("header: expected JSON of ordinary depth, found too many nested brackets")
def header_nested_too_deep(draft: Draft) -> None:
    draft.use_header(b'{"a":' + b"[" * 20_003)


@refused("header: JSON object: expected every key once, found 'layers.0.beta' twice")
def duplicate_key(draft: Draft) -> None:
    again = f',"{BETA}":{json.dumps(draft.header[BETA])}}}'.encode()
    text = draft.header_text().rstrip()[:-1] + again
    draft.use_header(text + b" " * (-len(text) % 8))


def _shift(draft: Draft, start: int, step: int) -> None:
    for name, entry in draft.header.items():
        if name != "__metadata__" and entry["data_offsets"][0] >= start:
            entry["data_offsets"] = [offset + step for offset in entry["data_offsets"]]


@refused(r"layers\.0\.residual: expected data that begins at \d+, found an overlap")
def overlapping_tensors(draft: Draft) -> None:
    begin, _ = draft.header["layers.0.residual"]["data_offsets"]
    _shift(draft, begin, -4)
    del draft.data[-4:]


@refused(r"layers\.0\.centres: expected data that begins at \d+, found a hole")
def hole_between_tensors(draft: Draft) -> None:
    begin, _ = draft.header["layers.0.centres"]["data_offsets"]
    _shift(draft, begin, 4)
    draft.data[begin:begin] = b"hole"


@refused("found 4 bytes that belong to no tensor")
def bytes_after_the_last_tensor(draft: Draft) -> None:
    draft.data += b"PK\x03\x04"


@refused(r"expected an end within \d+ bytes")
def offset_past_the_end(draft: Draft) -> None:
    del draft.data[-4:]


@refused(r"layers\.0\.beta\.data_offsets: expected 28 bytes for shape \[7\]")
def offsets_disagree_with_shape(draft: Draft) -> None:
    draft.header[BETA]["shape"] = [7]


@refused(r"layers\.0\.beta\.data_offsets: expected 340282366920938463463374607431768211456 bytes")
def shape_product_overflows(draft: Draft) -> None:
    draft.header[BETA]["shape"] = [2**62, 2**62, 4]


@refused(r"layers\.0\.beta\.data_offsets: expected a short list of non-negative 64-bit integers")
def negative_offset(draft: Draft) -> None:
    draft.header[BETA]["data_offsets"] = [-32, 0]


@refused(r"layers\.0\.beta\.data_offsets: expected begin and end, found 1 numbers")
def offset_without_an_end(draft: Draft) -> None:
    draft.header[BETA]["data_offsets"] = [0]


@refused(r"layers\.0\.beta\.shape: expected a short list")
def too_many_dimensions(draft: Draft) -> None:
    draft.header[BETA]["shape"] = [8, *[1] * 8]


@refused(r"layers\.0\.beta\.dtype: expected F32 or I32, found 'BF16'")
def unknown_dtype(draft: Draft) -> None:
    draft.header[BETA]["dtype"] = "BF16"


@refused("expected dtype, shape and data_offsets, found data_offsets, shape")
def incomplete_tensor_entry(draft: Draft) -> None:
    del draft.header[BETA]["dtype"]


@refused("__metadata__: expected a mapping of strings")
def metadata_not_strings(draft: Draft) -> None:
    draft.header["__metadata__"]["spectral_format"] = 1


@refused("spectral_format: expected '1', found '9'")
def metadata_of_another_version(draft: Draft) -> None:
    draft.header["__metadata__"]["spectral_format"] = "9"


@refused(r"layers\.0\.beta: expected F32 \[8\], found I32 \[8\]")
def wrong_dtype(draft: Draft) -> None:
    draft.header[BETA]["dtype"] = "I32"


@refused(r"layers\.0\.beta: expected F32 \[8\], found F32 \[4, 2\]")
def wrong_shape(draft: Draft) -> None:
    draft.header[BETA]["shape"] = [4, 2]


@refused(r"layers\.0\.common: expected F32 \[4\], found no such tensor")
def missing_tensor(draft: Draft) -> None:
    begin, end = draft.header.pop("layers.0.common")["data_offsets"]
    _shift(draft, end, begin - end)
    del draft.data[begin:end]


def _add(draft: Draft, name: str) -> None:
    size = len(draft.data)
    draft.header[name] = {"dtype": "F32", "shape": [1], "data_offsets": [size, size + 4]}
    draft.data += bytes(4)


@refused(r"layers\.0\.zeta: expected no such tensor, found F32 \[1\]")
def extra_tensor(draft: Draft) -> None:
    _add(draft, "layers.0.zeta")


@refused("found an extra tensor 'layers.7.beta'")
def tensor_of_no_layer(draft: Draft) -> None:
    _add(draft, "layers.7.beta")
