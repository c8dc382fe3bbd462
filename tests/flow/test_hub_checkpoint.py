"""Checkpoints on the Hub: planned from configuration and headers, opened as they fit, their licence carried along."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from fake_hub import Hub, Repository
from pico_models import write_checkpoint, write_text

from spectral_convert import opening
from spectral_convert.convert import convert_checkpoint
from spectral_convert.opening import open_model
from spectral_convert.plan import plan_conversion
from spectral_convert.recipe import Recipe
from spectral_convert.stream import stream_of

pytestmark = pytest.mark.filterwarnings(
    "ignore:Use 'content=:DeprecationWarning"
)  # the client's own use of httpx
HEADER = 100_001
"""Bytes that the client asks of every shard before it knows how long its header is."""
CARD = "---\nlicense: other\nlicense_name: pico\nlicense_link: https://example.org/pico\n---\n# Pico\n"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Some 3 MB of weights, far more than the headers, and a card."""
    folder = write_checkpoint(tmp_path_factory.mktemp("pico") / "model", "olmoe", intermediate_size=512)
    return {file.name: file.read_bytes() for file in folder.iterdir()} | {"README.md": CARD.encode()}


@pytest.fixture
def served(hub: Hub, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Hub:
    """The checkpoint as `org/pico`, and an empty cache."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    hub.repositories["org/pico"] = Repository(private=False)
    hub.repositories["org/pico"].commit("main", dict(files))
    return hub


def test_plan_fetches_configuration_and_headers_alone(
    served: Hub, files: dict[str, bytes], tmp_path: Path
) -> None:
    weights = len(files["model.safetensors"])
    record = plan_conversion("org/pico", cache_dir=tmp_path / "other")
    assert weights > 20 * HEADER
    assert served.sent == {"config.json": len(files["config.json"]), "model.safetensors": HEADER}
    assert 0.9 * weights < record["bytes_to_read"] / record["passes"] * 3 <= 3 * weights
    assert (record["moe_layers"], record["refused"]) == (2, [])
    assert record["revision"] == served.repositories["org/pico"].branches["main"]


@pytest.mark.parametrize(("free", "streams"), [(2**22, True), (2**34, False)])
def test_auto_knows_the_size_before_it_loads(
    free: int, streams: bool, served: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(opening, "free_memory", lambda: free)
    recipe = Recipe(model="org/pico", calibration="x")
    hub = {"token": None, "cache_dir": tmp_path / "other", "trust_remote_code": False}
    for _ in range(2):  # the second time from the cache, offline
        model, _ = open_model(recipe, load="auto", hub=hub)
        assert (stream_of(model) is not None) is streams
        assert model.config._commit_hash == served.repositories["org/pico"].branches["main"]
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def test_commit_and_licence_are_in_the_bundle(served: Hub, files: dict[str, bytes], tmp_path: Path) -> None:
    local = tmp_path / "model"
    local.mkdir()
    for name, data in files.items():
        (local / name).write_bytes(data)
    text = str(write_text(tmp_path / "text.txt"))
    few = {"calibration": text, "tokens": 500, "sequence_length": 32, "levels": 1, "alpha": 0.2}
    for source in ("org/pico", str(local)):
        out = tmp_path / source.replace("/", "-")
        done = convert_checkpoint(source, out=out, cache_dir=tmp_path / "other", **few)
        commit = served.repositories["org/pico"].branches["main"] if source == "org/pico" else None
        assert done.bundle.manifest.base_model.revision == commit
        card = (out / "README.md").read_text(encoding="utf-8")
        front = yaml.safe_load(card.split("---")[1])
        assert front["license"] == "other"
        assert front["license_name"] == "pico"
        assert front["license_link"] == "https://example.org/pico"
