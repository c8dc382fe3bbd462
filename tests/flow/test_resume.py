"""Conversions that are killed go on where they stopped, and end with the same bytes."""

from __future__ import annotations

import hashlib
import multiprocessing
import random
import time
from pathlib import Path
from typing import Any

import pytest
from pico_models import convert_in_child, write_checkpoint, write_text

from spectral_convert.convert import convert_checkpoint
from spectral_convert.recipe import Recipe
from spectral_convert.resume import NOT_FITTED
from spectral_convert.workdir import WorkDir, digest_of

KILLS = 20


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("world")
    model = write_checkpoint(folder / "model", "olmoe")
    text = write_text(folder / "text.txt")
    return {
        "model": str(model), "calibration": str(text), "tokens": 600, "sequence_length": 32,
        "levels": 2, "alpha": 0.2,
    }  # fmt: skip


def bytes_of(folder: Path) -> dict[str, str]:
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def made(work: Path, since: set[str]) -> dict[str, int]:
    """How many pieces of each stage were made beside those of before."""
    new = {file.name for file in work.glob("*.safetensors")} - since
    stages = ("capture", "fit", "evaluate")
    return {stage: sum(name.startswith(f"{stage}-") for name in new) for stage in stages}


def test_killed_at_any_point_it_ends_with_the_same_bytes(world: dict[str, Any], tmp_path: Path) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["spectral_convert.convert", "transformers.models.olmoe.modeling_olmoe"])
    whole = {**world, "out": str(tmp_path / "whole"), "work": str(tmp_path / "whole.work")}
    duration = _run(context, whole, None)
    expected = bytes_of(tmp_path / "whole")
    assert expected
    draw = random.Random(11)
    killed = 0
    for number in range(KILLS):
        name = f"run{number}"
        settings = {**world, "out": str(tmp_path / name), "work": str(tmp_path / f"{name}.work")}
        killed += _run(context, settings, draw.uniform(0.0, duration)) < 0
        if (tmp_path / name).exists():
            assert bytes_of(tmp_path / name) == expected, "a bundle is there whole or not at all"
            continue
        # In a child again: the last bits of a sum depend on the threads of the process that makes it.
        _run(context, settings, None)
        assert bytes_of(tmp_path / name) == expected, f"run {number}"
        assert not list((tmp_path / f"{name}.work").glob("*.part"))
    assert killed >= KILLS // 2, "most of the kills must have hit a running conversion"


def _run(context: Any, settings: dict[str, Any], kill_after: float | None) -> float:
    """Seconds that a conversion took, or -1 when it was killed before its end."""
    started = context.Event()
    child = context.Process(target=convert_in_child, args=(settings, started))
    child.start()
    assert started.wait(60)
    begun = time.monotonic()
    if kill_after is None:
        child.join(120)
        assert child.exitcode == 0
        return time.monotonic() - begun
    time.sleep(kill_after)
    child.kill()
    child.join(60)
    return -1.0 if child.exitcode != 0 else time.monotonic() - begun


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, {"capture": 0, "fit": 0, "evaluate": 0}),
        ({"alpha": 0.25, "gate_rows": True}, {"capture": 0, "fit": 0, "evaluate": 1}),
        ({"mode": "geometric"}, {"capture": 0, "fit": 2, "evaluate": 1}),
        ({"adaptive": True}, {"capture": 0, "fit": 2, "evaluate": 1}),
        ({"refine": False}, {"capture": 0, "fit": 2, "evaluate": 1}),
        ({"levels": 1}, {"capture": 0, "fit": 2, "evaluate": 1}),
        ({"tokens": 300}, {"capture": 2, "fit": 2, "evaluate": 1}),
        ({"dtype": "bfloat16"}, {"capture": 2, "fit": 2, "evaluate": 1}),
    ],
)
def test_a_change_makes_again_what_depends_on_it(
    change: dict[str, Any], expected: dict[str, int], world: dict[str, Any], tmp_path: Path
) -> None:
    work = tmp_path / "work"
    convert_checkpoint(**world, out=tmp_path / "first", work=work)
    before = {file.name for file in work.iterdir()}
    convert_checkpoint(**{**world, **change}, out=tmp_path / "second", work=work)
    assert made(work, before) == expected


def test_default_work_folder_goes_away(world: dict[str, Any], tmp_path: Path) -> None:
    convert_checkpoint(**world, out=tmp_path / "bundle")
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_streamed_conversion_has_the_same_bytes(world: dict[str, Any], tmp_path: Path) -> None:
    convert_checkpoint(**world, out=tmp_path / "full", load="full")
    convert_checkpoint(**world, out=tmp_path / "stream", load="stream", memory=0.0)
    assert bytes_of(tmp_path / "full") == bytes_of(tmp_path / "stream")


def test_a_damaged_piece_is_made_again(world: dict[str, Any], tmp_path: Path) -> None:
    work = tmp_path / "work"
    convert_checkpoint(**world, out=tmp_path / "first", work=work)
    for piece in work.glob("fit-*"):
        piece.write_bytes(piece.read_bytes()[:40])
    convert_checkpoint(**world, out=tmp_path / "second", work=work)
    assert bytes_of(tmp_path / "first") == bytes_of(tmp_path / "second")


def test_left_over_parts_are_swept(tmp_path: Path) -> None:
    (tmp_path / "capture-1.part").write_bytes(b"half")
    assert WorkDir(tmp_path).load("capture", "1" * 64) is None
    assert not list(tmp_path.iterdir())


def test_every_setting_is_known_to_act_before_or_in_the_fit() -> None:
    assert set(Recipe.__dataclass_fields__) >= NOT_FITTED
    assert digest_of(Recipe(levels=1)) != digest_of(Recipe(levels=2))


def test_the_recipe_of_a_bundle_gives_its_bytes_again(world: dict[str, Any], tmp_path: Path) -> None:
    convert_checkpoint(**world, out=tmp_path / "first", colour=1, mode="prefilter", candidates=3, seed=5)
    convert_checkpoint(recipe=tmp_path / "first", out=tmp_path / "second")
    assert bytes_of(tmp_path / "first") == bytes_of(tmp_path / "second")
