"""The demo checkpoint, converted once with little text, for every test of the flow."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

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
