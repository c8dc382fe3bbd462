"""The bytes of a bundle: exact, the same in any order and after a round trip, readable by safetensors."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from pico_bundles import (
    GOLDEN_CARD,
    GOLDEN_EVIDENCE,
    SIGMOID_GROUPS,
    golden_bundle,
    make_bundle,
    make_layer,
    make_manifest,
)

from spectral_runtime.bundle import FORMAT_VERSION, Bundle, load_bundle, write_bundle
from spectral_runtime.bundle.container import decode, encode
from spectral_runtime.bundle.contents import arrays_of
from spectral_runtime.bundle.tensors import TENSORS, layer_tensors
from spectral_runtime.errors import InternalError
from spectral_runtime.geometry import sphere_radii

GOLDEN = Path(__file__).parents[1] / "bundles" / "golden"
TENSOR_FILE = Path("spectral/spectral.safetensors")


def files_of(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def assert_same_arrays(one: Bundle, other: Bundle) -> None:
    for left, right in zip(one.layers, other.layers, strict=True):
        a, b = arrays_of(left), arrays_of(right)
        assert left.entry == right.entry
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_array_equal(a[name], b[name], strict=True)


def test_container_to_the_byte() -> None:
    tensors = {
        "b": np.array([[-1], [7]], np.int32),
        "a": np.array([1.0], np.float32),
        "c": np.empty((0, 3), np.float32),
    }
    header = (
        b'{"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
        b'"b":{"dtype":"I32","shape":[2,1],"data_offsets":[4,12]},'
        b'"c":{"dtype":"F32","shape":[0,3],"data_offsets":[12,12]}}'
    )
    padded = header + b" " * (248 - len(header))
    expected = (248).to_bytes(8, "little") + padded + bytes.fromhex("0000803f ffffffff 07000000")
    assert b"".join(encode(tensors, {"format": "pt"})) == expected


def test_container_ignores_the_order_it_is_given(rng: np.random.Generator) -> None:
    tensors = {f"t{i}": rng.standard_normal(i).astype(np.float32) for i in range(5)}
    shuffled = dict(reversed(tensors.items()))
    assert b"".join(encode(tensors, {"x": "1", "y": "2"})) == b"".join(encode(shuffled, {"y": "2", "x": "1"}))


def test_container_writes_c_order(rng: np.random.Generator) -> None:
    matrix = rng.standard_normal((3, 4)).astype(np.float32)
    file = np.frombuffer(b"".join(encode({"t": np.asfortranarray(matrix)}, {})), np.uint8)
    np.testing.assert_array_equal(decode(file, "memory")[0]["t"], matrix)


def test_golden_bundle_is_written_to_the_byte(tmp_path: Path) -> None:
    manifest, layers = golden_bundle()
    write_bundle(tmp_path / "g", manifest, layers, evidence=GOLDEN_EVIDENCE, card=GOLDEN_CARD)
    assert files_of(tmp_path / "g") == files_of(GOLDEN)


def test_golden_bundle_of_every_version_loads() -> None:
    bundle = load_bundle(GOLDEN)
    assert bundle.manifest.format_version == FORMAT_VERSION
    assert [layer.entry.mode for layer in bundle.layers] == ["prefilter", "geometric", "dense"]
    assert bundle.layers[2].geometry is None
    _, layers = golden_bundle()
    assert_same_arrays(bundle, dataclasses.replace(bundle, layers=layers))


def test_golden_bundle_has_every_tensor_of_the_table() -> None:
    names = {name for entry in load_bundle(GOLDEN).manifest.layers for name in layer_tensors(entry)}
    assert names == {spec.name for spec in TENSORS}


def test_write_read_write_is_identical(tmp_path: Path) -> None:
    bundle = load_bundle(GOLDEN)
    evidence = {"fit": json.loads((GOLDEN / "spectral/evidence/fit.json").read_text())}
    write_bundle(tmp_path / "g", bundle.manifest, bundle.layers, evidence=evidence, card=GOLDEN_CARD)
    assert files_of(tmp_path / "g") == files_of(GOLDEN)


def test_data_starts_on_a_cache_line() -> None:
    length = int.from_bytes((GOLDEN / TENSOR_FILE).read_bytes()[:8], "little")
    assert (8 + length) % 64 == 0


@pytest.mark.parametrize("mode", ["exact", "prefilter", "geometric", "dense"])
@pytest.mark.parametrize("rule", [{}, SIGMOID_GROUPS], ids=["softmax", "sigmoid"])
@pytest.mark.parametrize(("levels", "colour"), [(1, 0), (4, 12)])
def test_round_trip(
    tmp_path: Path, rng: np.random.Generator, mode: str, rule: dict[str, object], levels: int, colour: int
) -> None:
    options = {
        "mode": mode,
        "rule": rule,
        "levels": levels,
        "colour": colour,
        "experts": 16,
        "gate_rows": levels == 1,
    }
    manifest, layers = make_bundle(rng, layers=2, **options)
    written = write_bundle(tmp_path / "b", manifest, layers)
    loaded = load_bundle(tmp_path / "b")
    assert written.path == loaded.path == tmp_path / "b" / "spectral"
    assert written.manifest == loaded.manifest
    assert_same_arrays(written, loaded)
    assert_same_arrays(loaded, dataclasses.replace(loaded, layers=layers))


def test_eleven_layers_keep_their_order(tmp_path: Path, rng: np.random.Generator) -> None:
    manifest, layers = make_bundle(rng, layers=11, hidden=4, levels=1, colour=0)
    bundle = write_bundle(tmp_path / "b", manifest, layers)
    assert_same_arrays(bundle, dataclasses.replace(bundle, layers=layers))


def test_arrays_are_read_only_views_of_the_file() -> None:
    geometry = load_bundle(GOLDEN).layers[0].geometry
    assert geometry is not None
    assert not geometry.centres.flags.writeable
    assert not geometry.centres.flags.owndata
    with pytest.raises(ValueError, match="read-only"):
        geometry.centres[0] = 0


def test_safetensors_library_reads_it() -> None:
    numpy = pytest.importorskip("safetensors.numpy")
    safetensors = pytest.importorskip("safetensors")
    bundle = load_bundle(GOLDEN)
    tensors = numpy.load_file(GOLDEN / TENSOR_FILE)
    expected = {
        f"layers.{i}.{k}": v for i, layer in enumerate(bundle.layers) for k, v in arrays_of(layer).items()
    }
    assert tensors.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(tensors[name], array, strict=True)
    with safetensors.safe_open(GOLDEN / TENSOR_FILE, "np") as file:
        assert file.metadata() == {"format": "pt", "spectral_format": "1"}


def test_safetensors_library_reads_a_bundle_without_tensors(tmp_path: Path, rng: np.random.Generator) -> None:
    numpy = pytest.importorskip("safetensors.numpy")
    write_bundle(tmp_path / "b", *make_bundle(rng, mode="dense"))
    assert numpy.load_file(tmp_path / "b" / TENSOR_FILE) == {}


def test_we_read_what_the_safetensors_library_writes(rng: np.random.Generator) -> None:
    numpy = pytest.importorskip("safetensors.numpy")
    tensors = {"x": rng.standard_normal((2, 3)).astype(np.float32), "i": np.arange(3, dtype=np.int32)}
    found, metadata = decode(np.frombuffer(numpy.save(tensors, {"k": "v"}), np.uint8), "memory")
    assert metadata == {"k": "v"}
    for name, array in tensors.items():
        np.testing.assert_array_equal(found[name], array, strict=True)


def test_stored_radii_are_those_of_the_spheres() -> None:
    arrays, _ = decode(np.frombuffer((GOLDEN / TENSOR_FILE).read_bytes(), np.uint8), "golden")
    geometry = load_bundle(GOLDEN).layers[0].geometry
    assert geometry is not None
    np.testing.assert_array_equal(arrays["layers.0.radii"], sphere_radii(geometry))


def test_writer_refuses_what_the_reader_would(tmp_path: Path, rng: np.random.Generator) -> None:
    layer = make_layer(rng)
    assert layer.geometry is not None
    broken = dataclasses.replace(layer.geometry, beta=layer.geometry.beta * np.float32(np.nan))
    layers = (dataclasses.replace(layer, geometry=broken),)
    with pytest.raises(InternalError, match=r"refusing to write: .*beta\[0\]: expected finite values"):
        write_bundle(tmp_path / "b", make_manifest(layers), layers)
    assert list(tmp_path.iterdir()) == []


def test_writer_refuses_other_dtypes(tmp_path: Path, rng: np.random.Generator) -> None:
    layer = make_layer(rng)
    assert layer.geometry is not None
    wide = dataclasses.replace(layer.geometry, beta=layer.geometry.beta.astype(np.float64))  # type: ignore[arg-type]
    layers = (dataclasses.replace(layer, geometry=wide),)
    with pytest.raises(InternalError, match=r"layers\.0\.beta: expected F32 \[8\], found float64 \[8\]"):
        write_bundle(tmp_path / "b", make_manifest(layers), layers)


def test_writer_refuses_layers_of_another_manifest(tmp_path: Path, rng: np.random.Generator) -> None:
    manifest, _ = make_bundle(rng, layers=2)
    _, others = make_bundle(rng, layers=1)
    with pytest.raises(InternalError, match="expected one layer per manifest entry"):
        write_bundle(tmp_path / "b", manifest, others)


@pytest.mark.parametrize("value", [float("nan"), object(), {1: 0, "a": 0}, "\ud800"], ids=repr)
def test_writer_refuses_evidence_that_is_not_json(
    tmp_path: Path, rng: np.random.Generator, value: object
) -> None:
    manifest, layers = make_bundle(rng)
    with pytest.raises(InternalError, match=r"evidence/fit\.json: expected values that JSON can hold"):
        write_bundle(tmp_path / "b", manifest, layers, evidence={"fit": value})


def test_writer_refuses_evidence_outside_its_folder(tmp_path: Path, rng: np.random.Generator) -> None:
    manifest, layers = make_bundle(rng)
    with pytest.raises(InternalError, match="evidence: expected a relative path"):
        write_bundle(tmp_path / "b", manifest, layers, evidence={"../../fit": 1})
