"""To the Hub and back with the real client: create, upload, break off, retry, refuse, pin, read offline."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml
from fake_hub import Hub
from pico_bundles import make_bundle

from spectral_convert.push import push_bundle
from spectral_runtime.bundle import load_bundle, write_bundle
from spectral_runtime.errors import BundleError

pytestmark = pytest.mark.filterwarnings(
    "ignore:Use 'content=:DeprecationWarning"
)  # the client's own use of httpx


@pytest.fixture
def bundle(tmp_path: Path, rng: np.random.Generator) -> Path:
    manifest, layers = make_bundle(rng, layers=2)
    return write_bundle(tmp_path / "bundle", manifest, layers).path.parent


def push(bundle: Path, name: str = "org/pico", **options: object) -> dict[str, object]:
    return push_bundle(bundle, name, token="hf_good", **options)  # type: ignore[arg-type]


def test_round_trip(hub: Hub, bundle: Path, tmp_path: Path) -> None:
    result = push(bundle)
    assert result["repo"] == "org/pico"
    again = load_bundle("org/pico", cache_dir=tmp_path / "cache")
    assert again.manifest == load_bundle(bundle).manifest
    card = hub.repositories["org/pico"].files("main")["README.md"].decode()
    front = yaml.safe_load(card.split("---")[1])
    base = again.manifest.base_model
    assert front["library_name"] == "spectral"
    assert front["base_model"] == base.id
    assert front["base_model_relation"] == "adapter"
    assert {"spectral", "moe", base.model_type} <= set(front["tags"])
    assert 'load_model("org/pico")' in card
    assert all(layer.path in card for layer in again.manifest.layers)


def test_offline_reads_what_was_downloaded(hub: Hub, bundle: Path, tmp_path: Path) -> None:
    push(bundle)
    load_bundle("org/pico", cache_dir=tmp_path / "cache")
    asked = len(hub.requests)
    again = load_bundle("org/pico", cache_dir=tmp_path / "cache", local_files_only=True)
    assert len(hub.requests) == asked
    assert again.manifest.layers
    with pytest.raises(BundleError, match=r"org/pico: expected a local folder or a Hub repository"):
        load_bundle("org/pico", cache_dir=tmp_path / "empty", local_files_only=True)


def test_private_needs_its_token(hub: Hub, bundle: Path, tmp_path: Path) -> None:
    push(bundle, private=True)
    assert hub.repositories["org/pico"].private
    with pytest.raises(BundleError, match=r"org/pico: .*check the id and the revision, log in"):
        load_bundle("org/pico", cache_dir=tmp_path / "a", token=False)
    assert load_bundle("org/pico", cache_dir=tmp_path / "b", token="hf_good").manifest.layers


def test_wrong_token_is_refused_and_nothing_is_created(hub: Hub, bundle: Path) -> None:
    with pytest.raises(BundleError, match=r"push to org/pico: .*401.*--token"):
        push_bundle(bundle, "org/pico", token="hf_bad")
    with pytest.raises(BundleError, match=r"push to other/pico: .*403.*may not write"):
        push(bundle, "other/pico")
    assert not hub.repositories


def test_broken_upload_is_resumed(hub: Hub, bundle: Path, tmp_path: Path) -> None:
    hub.break_next["POST /api/models/org/pico/commit"] = 403
    with pytest.raises(BundleError, match="push to org/pico: expected an upload"):
        push(bundle)
    assert hub.repositories["org/pico"].files("main") == {}
    sent = {request for request in hub.requests if request.startswith("PUT /blob")}
    del hub.requests[:]
    push(bundle)
    assert sent.isdisjoint(hub.requests), "what has arrived is not sent twice"
    assert load_bundle("org/pico", cache_dir=tmp_path / "cache").manifest.layers


def test_blob_that_breaks_off(hub: Hub, bundle: Path) -> None:
    hub.break_next["PUT /blob"] = 403
    with pytest.raises(BundleError, match="push to org/pico"):
        push(bundle)
    assert push(bundle)["commit"]


def test_revision_and_pull_request(hub: Hub, bundle: Path, tmp_path: Path) -> None:
    first = push(bundle, revision="trial")
    assert hub.repositories["org/pico"].files("main") == {}
    assert load_bundle("org/pico", revision="trial", cache_dir=tmp_path / "a").manifest.layers
    assert load_bundle("org/pico", revision=str(first["commit"]), cache_dir=tmp_path / "b").manifest.layers
    with pytest.raises(BundleError, match="org/pico"):
        load_bundle("org/pico", revision="nowhere", cache_dir=tmp_path / "c")
    opened = push(bundle, create_pr=True)
    assert str(opened["pull_request"]).endswith("/discussions/1")
    assert hub.repositories["org/pico"].files("main") == {}


def test_damaged_bundle_is_not_sent(hub: Hub, bundle: Path) -> None:
    (bundle / "spectral" / "spectral.safetensors").write_bytes(b"no")
    with pytest.raises(BundleError, match=r"spectral\.safetensors"):
        push(bundle)
    assert not hub.requests
