"""The demo checkpoint, converted once with little text, for every test of the flow; a Hub for those that need one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_hub import FakeHub, Hub

from spectral_convert.convert import Conversion, convert_checkpoint
from spectral_runtime.attaching.load import load_base

ROOT = Path(__file__).parents[2]
CHECKPOINT = ROOT / "recipes" / "demo" / "checkpoint"
TEXT = ROOT / "recipes" / "demo" / "books.txt"
QUICK: dict[str, Any] = {"calibration": str(TEXT), "tokens": 12_000, "sequence_length": 128, "alpha": 0.05}

os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Conversion:
    """The demo checkpoint in mode prefilter."""
    out = tmp_path_factory.mktemp("demo") / "bundle"
    return convert_checkpoint(str(CHECKPOINT), out=out, mode="prefilter", levels=2, colour=2, **QUICK)


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def model(request: pytest.FixtureRequest) -> Any:
    """The untouched demo model."""
    return load_base(CHECKPOINT, dtype=request.param)[0]


@pytest.fixture
def model32() -> Any:
    """The untouched demo model in float32."""
    return load_base(CHECKPOINT, dtype=torch.float32)[0]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A Hub on the loopback that the real client talks to."""
    import huggingface_hub
    from huggingface_hub import constants

    with FakeHub() as served:
        monkeypatch.setattr(constants, "ENDPOINT", served.url)
        monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", served.url)
        monkeypatch.setattr("transformers.utils.hub._hf_api", None, raising=False)  # made with the endpoint
        url = f"{served.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        monkeypatch.setenv("HF_TOKEN", "")
        monkeypatch.delenv("HF_TOKEN")
        yield served
        huggingface_hub.close_session()
