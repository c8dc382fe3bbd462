"""Every rule of the format refuses the bundle that breaks it; random damage gets BundleError or loads."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from bundles.damage import CONFIG, RULES, TENSORS, Draft, sound_draft, take_apart
from bundles.make_hostile import HOSTILE, write_hostile

from spectral_runtime.bundle import load_bundle
from spectral_runtime.errors import BundleError

GOLDEN = HOSTILE.parent / "golden" / "spectral"


def test_the_sound_draft_loads(tmp_path: Path) -> None:
    sound_draft().write(tmp_path)
    assert load_bundle(tmp_path).layers[0].entry.candidates == 4


@pytest.mark.parametrize("name", sorted(RULES))
def test_hostile_bundle_is_refused(name: str) -> None:
    with pytest.raises(BundleError, match=RULES[name][0]):
        load_bundle(HOSTILE / name)


def test_committed_folders_are_what_the_generator_writes(tmp_path: Path) -> None:
    write_hostile(tmp_path)
    assert sorted(p.name for p in HOSTILE.iterdir()) == sorted(RULES)
    for made in tmp_path.rglob("*.*"):
        assert made.read_bytes() == (HOSTILE / made.relative_to(tmp_path)).read_bytes(), made.name


def test_messages_are_one_printable_line() -> None:
    for name in RULES:
        with pytest.raises(BundleError, match=name) as caught:
            load_bundle(HOSTILE / name)
        assert str(caught.value).isprintable(), name
        assert len(str(caught.value)) < 1000, name


def test_link_out_of_the_bundle(tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    sound_draft().write(folder)
    (folder / TENSORS).rename(tmp_path / "elsewhere")
    (folder / TENSORS).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BundleError, match="expected a file inside the bundle, found a link to"):
        load_bundle(folder)


def test_links_of_the_hub_cache_are_followed(tmp_path: Path) -> None:
    folder = tmp_path / "models--pico--moe" / "snapshots" / "0123abcd" / "spectral"
    blobs = tmp_path / "models--pico--moe" / "blobs"
    sound_draft().write(folder)
    blobs.mkdir()
    for name in (TENSORS, CONFIG):
        (folder / name).rename(blobs / name)
        (folder / name).symlink_to(Path("../../../blobs") / name)
    assert len(load_bundle(folder.parent).layers) == 1


def test_pipe_in_place_of_a_file(tmp_path: Path) -> None:
    sound_draft().write(tmp_path)
    (tmp_path / TENSORS).unlink()
    os.mkfifo(tmp_path / TENSORS)
    with pytest.raises(BundleError, match="found no regular file"):
        load_bundle(tmp_path)


def test_manifest_without_bound(tmp_path: Path) -> None:
    sound_draft().write(tmp_path)
    with (tmp_path / CONFIG).open("r+b") as file:
        file.truncate(2**40)  # sparse: takes no room
    with pytest.raises(BundleError, match="expected at most 16777216 bytes, found more"):
        load_bundle(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable_file(tmp_path: Path) -> None:
    sound_draft().write(tmp_path)
    (tmp_path / TENSORS).chmod(0)
    with pytest.raises(BundleError, match="expected readable files, found Permission denied"):
        load_bundle(tmp_path)


def _golden() -> Draft:
    return take_apart((GOLDEN / TENSORS).read_bytes(), (GOLDEN / CONFIG).read_bytes())


def _survives(draft: Draft, folder: Path) -> bool:
    """Whether the damaged bundle loads; any exception but BundleError fails the test."""
    draft.manifest["files"] = {TENSORS: draft.manifest["files"][TENSORS]}
    draft.write(folder)
    try:
        load_bundle(folder)
    except BundleError:
        return False
    return True


def test_flipped_bytes_of_the_tensor_file(tmp_path: Path, rng: np.random.Generator) -> None:
    content = (GOLDEN / TENSORS).read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    refused = 0
    for round_ in range(300):
        damaged = bytearray(content)
        reach = start if round_ % 2 else len(content)  # half of the damage goes to the header
        for at in rng.integers(0, reach, size=rng.integers(1, 4)):
            damaged[at] = rng.integers(256)
        draft = _golden()
        draft.file = bytes(damaged)
        refused += not _survives(draft, tmp_path)
    assert refused > 150


def test_truncated_and_spliced_tensor_files(tmp_path: Path, rng: np.random.Generator) -> None:
    content = (GOLDEN / TENSORS).read_bytes()
    for _ in range(100):
        cut, back = sorted(int(i) for i in rng.integers(1, len(content), size=2))
        draft = _golden()
        draft.file = content[:cut]
        assert not _survives(draft, tmp_path)
        draft.file = content[:cut] + content[back + 1 :]
        assert not _survives(draft, tmp_path)


def test_flipped_bytes_of_the_manifest(tmp_path: Path, rng: np.random.Generator) -> None:
    draft = _golden()
    draft.manifest["files"] = {TENSORS: draft.manifest["files"][TENSORS]}
    config = draft.files()[CONFIG]
    for _ in range(200):
        damaged = bytearray(config)
        for at in rng.integers(0, len(config), size=rng.integers(1, 4)):
            damaged[at] = rng.integers(256)
        draft.config = bytes(damaged)
        _survives(draft, tmp_path)


def test_values_of_the_manifest_replaced(tmp_path: Path, rng: np.random.Generator) -> None:
    strange = [None, True, -1, 0, 2**31, 10**400, 0.5, -1e308, "", "x", [], [[]], {}, {"a": 1}]
    for key in (
        "hidden",
        "levels",
        "colour",
        "nodes",
        "candidates",
        "rule",
        "path",
        "mode",
        "certificate",
        "explained",
    ):
        for value in strange:
            draft = _golden()
            draft.layer[key] = value
            _survives(draft, tmp_path)


def test_values_at_the_edge_of_float32(tmp_path: Path) -> None:
    for name in ("centres", "beta", "radii", "residual", "bvh.lower", "bvh.power", "bvh.beta", "projection"):
        for value in (np.finfo(np.float32).max, np.finfo(np.float32).min):
            draft = _golden()
            draft.array(name)[...] = value
            _survives(draft, tmp_path)


def test_integers_of_the_tree_replaced(tmp_path: Path, rng: np.random.Generator) -> None:
    for name in ("bvh.first", "bvh.count", "bvh.experts"):
        for value in (-(2**31), -1, 0, 1, 6, 7, 8, 2**30, 2**31 - 1):
            draft = _golden()
            array = draft.array(name)
            for at in range(len(array)):
                before = array[at]
                array[at] = value
                assert _survives(draft, tmp_path) == (value == before), (name, at, value)
                array[at] = before
