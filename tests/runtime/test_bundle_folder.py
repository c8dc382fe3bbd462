"""What happens around a bundle's folder: finding it, replacing it, interruptions, other people's files."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pico_bundles import make_bundle

from spectral_runtime.bundle import check_target, load_bundle, locate, write_bundle
from spectral_runtime.errors import BundleError, ConfigError


@pytest.fixture
def folder(tmp_path: Path, rng: np.random.Generator) -> Path:
    """A bundle with a card, alone in its parent."""
    write_bundle(tmp_path / "bundle", *make_bundle(rng), card="old", evidence={"old": 1})
    return tmp_path / "bundle"


def state(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_folder_holds_what_the_format_says(folder: Path) -> None:
    names = {
        "README.md",
        *(f"spectral/{n}" for n in ("spectral.safetensors", "spectral_config.json", "evidence/old.json")),
    }
    assert state(folder).keys() == names
    assert set(load_bundle(folder).manifest.files) == {"spectral.safetensors", "evidence/old.json"}


def test_both_folders_are_the_bundle(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_bundle(folder).path == load_bundle(str(folder / "spectral")).path == folder / "spectral"
    monkeypatch.chdir(folder.parent)
    assert load_bundle("bundle").path == folder / "spectral"


def test_edited_card_and_unlisted_files_do_not_matter(folder: Path) -> None:
    (folder / "README.md").write_text("edited on the Hub")
    (folder / "spectral" / ".DS_Store").write_bytes(b"\0")
    assert load_bundle(folder).manifest.base_model.id == "pico/moe"


@pytest.mark.parametrize("source", ["./no/such", "/no/such", "a/b/c", "~/no such", "", "x\0y", ".."])
def test_neither_folder_nor_hub_id(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        BundleError, match=r"expected a bundle, found neither|expected spectral_config\.json or"
    ):
        load_bundle(source)


def test_folder_without_a_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"expected spectral_config\.json or .*, found a folder without it"):
        load_bundle(tmp_path)


def test_file_in_place_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("")
    with pytest.raises(BundleError, match="found a file — convert a model first"):
        load_bundle(tmp_path / "x")


def _fake_hub(monkeypatch: pytest.MonkeyPatch, download: Callable[..., str]) -> None:
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(hub, "snapshot_download", download)


def test_hub_id_is_downloaded(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}
    _fake_hub(monkeypatch, lambda source, **options: asked.update(options, source=source) or str(folder))
    monkeypatch.chdir(tmp_path)
    bundle = load_bundle("pico/moe", revision="v1", token="t", cache_dir=tmp_path, local_files_only=True)
    assert bundle.path == folder / "spectral"
    patterns = asked.pop("allow_patterns")
    assert "spectral/*" in patterns
    assert asked == {
        "source": "pico/moe",
        "revision": "v1",
        "token": "t",
        "cache_dir": tmp_path,
        "local_files_only": True,
    }


def test_local_folder_wins_over_the_hub(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **options: object) -> str:
        raise AssertionError("the Hub was asked")

    _fake_hub(monkeypatch, refuse)
    monkeypatch.chdir(folder.parent)
    assert load_bundle("bundle", revision="v1").path == folder / "spectral"


def test_hub_failure_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **options: object) -> str:
        raise FileNotFoundError("no such repository\nand a long explanation")

    _fake_hub(monkeypatch, fail)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        BundleError, match=r"pico/moe: expected .*, found no such repository — check the id"
    ) as caught:
        load_bundle("pico/moe")
    assert "\n" not in str(caught.value)


def test_hub_offline_without_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("huggingface_hub")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BundleError, match="pico/moe: expected a local folder or a Hub repository"):
        load_bundle("pico/moe", cache_dir=tmp_path, local_files_only=True)


def test_importing_the_format_imports_nothing_heavy() -> None:
    heavy = "{'torch', 'transformers', 'huggingface_hub'}"
    code = f"import sys, spectral_runtime.bundle; print(*{heavy} & set(sys.modules))"
    environment = {**os.environ, "PYTHONPATH": str(Path(locate.__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    assert done.stdout.strip() == ""


def test_existing_folder_needs_overwrite(folder: Path, rng: np.random.Generator) -> None:
    before = state(folder)
    with pytest.raises(ConfigError, match=r"expected a new folder, found one that exists — .*--overwrite"):
        write_bundle(folder, *make_bundle(rng))
    assert state(folder) == before


def test_empty_folder_needs_no_overwrite(tmp_path: Path, rng: np.random.Generator) -> None:
    (tmp_path / "empty").mkdir()
    assert write_bundle(tmp_path / "empty", *make_bundle(rng)).layers


def test_parents_are_made(tmp_path: Path, rng: np.random.Generator) -> None:
    assert write_bundle(tmp_path / "a" / "b", *make_bundle(rng)).path == tmp_path / "a" / "b" / "spectral"


def test_overwrite_replaces_everything(folder: Path, rng: np.random.Generator) -> None:
    write_bundle(folder, *make_bundle(rng, experts=6), evidence={"new": 2}, overwrite=True)
    assert load_bundle(folder).layers[0].entry.rule.experts == 6
    assert "spectral/evidence/old.json" not in state(folder)
    assert [p.name for p in folder.parent.iterdir()] == ["bundle"]


def test_overwrite_leaves_open_arrays_alone(folder: Path, rng: np.random.Generator) -> None:
    old = load_bundle(folder).layers[0].geometry
    assert old is not None
    before = old.centres.copy()
    write_bundle(folder, *make_bundle(rng), overwrite=True)
    np.testing.assert_array_equal(old.centres, before)


def test_overwrite_through_a_link_replaces_the_folder(folder: Path, rng: np.random.Generator) -> None:
    link = folder.parent / "link"
    link.symlink_to(folder)
    write_bundle(link, *make_bundle(rng, experts=6), overwrite=True)
    assert link.is_symlink()
    assert load_bundle(folder).layers[0].entry.rule.experts == 6


def test_only_bundles_are_overwritten(tmp_path: Path, rng: np.random.Generator) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("years of work")
    with pytest.raises(ConfigError, match="found no bundle — only a bundle is ever overwritten"):
        write_bundle(tmp_path / "thesis", *make_bundle(rng), overwrite=True)
    assert state(tmp_path / "thesis") == {"chapter.tex": b"years of work"}


def test_file_is_not_overwritten(tmp_path: Path, rng: np.random.Generator) -> None:
    (tmp_path / "x").write_text("keep")
    with pytest.raises(ConfigError, match="expected a folder, found a file"):
        write_bundle(tmp_path / "x", *make_bundle(rng), overwrite=True)
    assert (tmp_path / "x").read_text() == "keep"


def test_foreign_files_are_named(folder: Path, rng: np.random.Generator) -> None:
    for name in ("model.safetensors", "spectral/notes.txt", "spectral/evidence/raw/a.json"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("mine")
    before = state(folder)
    found = "found model.safetensors, spectral/evidence/raw/a.json, spectral/notes.txt — move them away"
    with pytest.raises(ConfigError, match=found):
        write_bundle(folder, *make_bundle(rng), overwrite=True)
    with pytest.raises(ConfigError, match=found):
        check_target(folder, overwrite=True)
    assert state(folder) == before


def test_carried_files_survive(folder: Path, tmp_path: Path, rng: np.random.Generator) -> None:
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer" / "vocab.json").write_text("stays")
    (tmp_path / "weights").write_text("comes")
    carry = {
        "tokenizer/vocab.json": folder / "tokenizer/vocab.json",
        "model.safetensors": tmp_path / "weights",
    }
    write_bundle(folder, *make_bundle(rng), overwrite=True, carry=carry)
    assert (folder / "tokenizer" / "vocab.json").read_text() == "stays"
    assert (folder / "model.safetensors").read_text() == "comes"
    assert (tmp_path / "weights").stat().st_nlink == 1


@pytest.mark.parametrize("name", ["spectral/x", "spectral", "README.md"])
def test_carry_does_not_hide_the_bundle(tmp_path: Path, rng: np.random.Generator, name: str) -> None:
    (tmp_path / "x").write_text("x")
    with pytest.raises(ConfigError, match="expected a name that the bundle does not use"):
        write_bundle(tmp_path / "b", *make_bundle(rng), card="c", carry={name: tmp_path / "x"})


def test_carry_needs_a_file(tmp_path: Path, rng: np.random.Generator) -> None:
    with pytest.raises(ConfigError, match="carry: x: expected a file, found nothing at"):
        write_bundle(tmp_path / "b", *make_bundle(rng), carry={"x": tmp_path / "absent"})


def _fail_at(call: int, fault: BaseException, real: Callable[..., Any]) -> Callable[..., Any]:
    calls = 0

    def wrapped(*args: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            raise fault
        return real(*args, **options)

    return wrapped


FULL = OSError(errno.ENOSPC, "No space left on device")
PLACES = [("fsync", n) for n in range(1, 8)] + [("replace", 1), ("replace", 2)]


@pytest.mark.parametrize(("function", "call"), PLACES)
@pytest.mark.parametrize("fault", [FULL, KeyboardInterrupt("stop")], ids=["full", "ctrl-c"])
def test_failure_leaves_the_old_bundle(
    folder: Path,
    rng: np.random.Generator,
    monkeypatch: pytest.MonkeyPatch,
    function: str,
    call: int,
    fault: BaseException,
) -> None:
    before = state(folder)
    monkeypatch.setattr(os, function, _fail_at(call, fault, getattr(os, function)))
    new = make_bundle(rng, experts=6)
    expected, message = (BundleError, "No space left") if fault is FULL else (KeyboardInterrupt, "stop")
    with pytest.raises(expected, match=message):
        write_bundle(folder, *new, evidence={"a": 1}, card="c", overwrite=True)
    assert state(folder) == before
    assert [p.name for p in folder.parent.iterdir()] == ["bundle"]


@pytest.mark.parametrize(("function", "call"), [*PLACES[:3], ("replace", 1)])
def test_failure_of_a_first_write_leaves_nothing(
    tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, function: str, call: int
) -> None:
    monkeypatch.setattr(os, function, _fail_at(call, KeyboardInterrupt("stop"), getattr(os, function)))
    with pytest.raises(KeyboardInterrupt, match="stop"):
        write_bundle(tmp_path / "bundle", *make_bundle(rng))
    assert list(tmp_path.iterdir()) == []


KILLED = """
import os, signal, sys, numpy
from pico_bundles import make_bundle
from spectral_runtime.bundle import write_bundle
signal.signal(signal.SIGTERM, signal.default_int_handler)
os.fsync = lambda descriptor: os.kill(os.getpid(), signal.{signal})
write_bundle(sys.argv[1], *make_bundle(numpy.random.default_rng(0), experts=6), overwrite=True)
"""


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGKILL"])
def test_killed_process_leaves_the_old_bundle(folder: Path, name: str) -> None:
    before = state(folder)
    paths = [Path(locate.__file__).parents[2], Path(__file__).parents[1]]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))}
    code = KILLED.replace("{signal}", name)
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)], capture_output=True, env=environment, check=False
    )
    assert done.returncode in (-getattr(signal, name), -signal.SIGINT)
    assert state(folder) == before
    leftovers = [p.name for p in folder.parent.iterdir() if p.name != "bundle"]
    assert leftovers == [] or name == "SIGKILL"
