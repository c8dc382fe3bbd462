"""Identity and exactness on the trained reference checkpoints, where they are at hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from spectral_convert.convert import convert_checkpoint
from spectral_runtime import attach
from spectral_runtime.attaching.load import load_base

SHARED = Path(__file__).parents[3] / "shared"
pytestmark = pytest.mark.skipif(
    not SHARED.is_dir(), reason="the reference checkpoints (../shared) are not here"
)


@pytest.mark.parametrize("name", ["olmoe-32e", "olmoe-64e", "deepseek-128e"])
def test_whole_candidates_and_dense_change_no_bit(name: str, tmp_path: Path) -> None:
    source = SHARED / "models" / name
    settings: dict[str, Any] = {"tokens": 3000, "sequence_length": 128, "alpha": 0.1, "mode": "prefilter"}
    calibration = str(SHARED / "data" / "calibration" / "docs.txt")
    bundle = convert_checkpoint(str(source), out=tmp_path / "b", calibration=calibration, **settings).bundle
    tokens = torch.randint(2, 8192, (2, 64), generator=torch.Generator().manual_seed(0))
    for dtype in (torch.float32, torch.bfloat16):
        model = load_base(source, dtype=dtype)[0]
        with torch.inference_mode():
            before = model(input_ids=tokens).logits
            for mode, candidates in (
                ("dense", None),
                ("exact", None),
                ("prefilter", bundle.layers[0].entry.rule.experts),
            ):
                with attach(model, bundle, mode, candidates=candidates):
                    assert torch.equal(model(input_ids=tokens).logits, before)
