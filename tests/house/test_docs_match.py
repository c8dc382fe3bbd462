"""FORMAT.md says what the code does: its tables are those of the code, its example runs."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from spectral_runtime.bundle import FORMAT_VERSION, load_bundle
from spectral_runtime.bundle.manifest import BaseModel, Certificate, FileEntry, LayerEntry, Manifest, Split
from spectral_runtime.bundle.tensors import TENSORS
from spectral_runtime.gate import GateRule
from spectral_runtime.geometry import directions

ROOT = Path(__file__).parents[2]
FORMAT = (ROOT / "runtime" / "FORMAT.md").read_text(encoding="utf-8")
TYPES = {
    "Mode": "str",
    "Score": "str",
    "Weight": "str",
    "Dtype": "str",
    "str | None": "str or null",
    "float | None": "float or null",
    "Certificate | None": "Certificate or null",
    "tuple[LayerEntry, ...]": "list of LayerEntry",
    "tuple[float, ...]": "list of float",
    "dict[str, FileEntry]": "map of FileEntry",
    "dict[str, Split]": "map of Split",
    "dict[str, str]": "map of str",
    "dict[str, Any]": "map",
}


def table_after(heading: str) -> list[list[str]]:
    """The cells of the first table after a heading, without its head, back-quotes removed."""
    after = FORMAT.split(f"\n### {heading}\n", 1)[1]
    rows = re.search(r"\n((?:\|.*\n)+)", after)
    assert rows is not None, heading
    cells = [[cell.strip().strip("`") for cell in row.strip("|").split("|")] for row in rows[1].splitlines()]
    return cells[2:]


def test_tensor_table() -> None:
    documented = [tuple(row[:4]) for row in table_after("Tensors")]
    assert documented == [(spec.name, spec.dtype, spec.shape, spec.when) for spec in TENSORS]


def spelt(field: dataclasses.Field[Any]) -> tuple[str, str, str]:
    """Key, type and default of a field as the page spells them."""
    if field.default_factory is not dataclasses.MISSING:
        default = json.dumps(field.default_factory())
    elif field.default is dataclasses.MISSING:
        default = ""
    else:
        default = json.dumps(list(field.default) if isinstance(field.default, tuple) else field.default)
    written = str(field.type)
    return field.name, "str" if written.startswith("Literal") else TYPES.get(written, written), default


@pytest.mark.parametrize("cls", [Manifest, BaseModel, LayerEntry, GateRule, Certificate, Split, FileEntry])
def test_manifest_tables(cls: type) -> None:
    documented = [tuple(row[:3]) for row in table_after(cls.__name__)]
    assert documented == [spelt(field) for field in dataclasses.fields(cls)]


def test_every_row_says_what_it_means() -> None:
    for row in re.findall(r"^\|.*\|$", FORMAT, flags=re.MULTILINE):
        assert row.strip("|").split("|")[-1].strip(), row


def test_version_table_ends_with_the_version() -> None:
    versions = re.findall(r"^\| (\d+) \| [\d.]+ \|", FORMAT.split("## Versions")[1], flags=re.MULTILINE)
    assert [int(version) for version in versions] == list(range(1, FORMAT_VERSION + 1))


def test_limits_are_those_of_the_code() -> None:
    from spectral_runtime.bundle import container, layer_rules, manifest_rules, reader

    assert f"at most {container.MAX_HEADER_BYTES:,}".replace(",", " ") in FORMAT
    assert f"at most {reader.MAX_MANIFEST_BYTES // 2**20} MiB" in FORMAT
    assert f"no path has more than {layer_rules.MAX_DEPTH} nodes" in FORMAT
    assert f"L, 1 to {manifest_rules.MAX_LEVELS}" in FORMAT
    assert f"D, at most 2^{manifest_rules.MAX_DIMENSION.bit_length() - 1}" in FORMAT
    assert f"E, at most 2^{manifest_rules.MAX_EXPERTS.bit_length() - 1}" in FORMAT
    assert f"multiple of {container.ALIGNMENT}" in FORMAT


def test_example_reads_the_golden_bundle(monkeypatch: pytest.MonkeyPatch) -> None:
    example = re.search(r"```python\n(.*?)```", FORMAT, flags=re.DOTALL)
    assert example is not None
    monkeypatch.chdir(ROOT)
    found: dict[str, Any] = {}
    exec(example[1], found)
    geometry = load_bundle("tests/bundles/golden").layers[0].geometry
    assert geometry is not None
    reduced = geometry.projection @ (np.ones(geometry.mean.shape, np.float32) - geometry.mean)
    np.testing.assert_allclose(found["scores"], directions(geometry) @ reduced + geometry.beta, rtol=1e-6)
