"""On a GPU: streaming moves one layer at a time there and converts alike; a healed bundle comes back whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pico_models import pico_documents, write_checkpoint

from spectral_convert.convert import convert_checkpoint
from spectral_convert.evaluate import evaluate_bundle
from spectral_convert.healing import heal_bundle
from spectral_convert.stream import open_streamed, stream_of
from spectral_runtime import load_bundle
from spectral_runtime.attaching.load import load_base

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "recipes" / "demo"

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU that torch can use"),
]


@pytest.fixture
def text(tmp_path: Path) -> str:
    file = tmp_path / "text.txt"
    file.write_text("\f".join(pico_documents()), encoding="utf-8")
    return str(file)


def test_one_layer_at_a_time_is_on_the_gpu(tmp_path: Path) -> None:
    from transformers import AutoConfig

    folder = write_checkpoint(tmp_path, "olmoe")
    ids = torch.arange(24, device="cuda")[None]
    whole, _ = load_base(folder, dtype="float32", device="cuda")
    with torch.inference_mode():
        expected = whole(input_ids=ids, use_cache=False).logits
    model = open_streamed(folder, AutoConfig.from_pretrained(folder), dtype=torch.float32, device="cuda")
    held: list[set[str]] = []

    def look(*_: Any) -> None:
        there = [name for name, p in model.named_parameters() if p.device.type == "cuda"]
        held.append({name.split(".")[2] for name in there if "experts" in name})

    for layer in model.model.layers:
        layer.mlp.register_forward_hook(look)
    stream = stream_of(model)
    assert stream is not None

    def forward() -> torch.Tensor:
        with torch.inference_mode():
            return model(input_ids=ids, use_cache=False).logits

    (found,) = stream.run([forward], lambda _: None)
    assert torch.equal(found, expected)
    assert [len(layers) for layers in held] == [1, 1]


def test_a_streamed_conversion_equals_a_full_one(text: str, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, "olmoe")
    common: dict[str, Any] = {
        "calibration": text, "tokens": 600, "sequence_length": 32, "alpha": 0.1, "device": "cuda", "dtype": "float32",
    }  # fmt: skip
    made = [
        convert_checkpoint(str(folder), out=tmp_path / load, load=load, **common).bundle
        for load in ("full", "stream")
    ]
    full, stream = ((bundle.path / "spectral.safetensors").read_bytes() for bundle in made)
    assert full == stream


@pytest.mark.parametrize("scope", ["geometry", "all"])
def test_a_heal_lowers_the_loss_and_loads(scope: str, tmp_path: Path) -> None:
    text = str(DEMO / "books.txt")
    common: dict[str, Any] = {"calibration": text, "tokens": 30_000, "sequence_length": 128, "alpha": 0.1}
    convert_checkpoint(
        str(DEMO / "checkpoint"),
        out=tmp_path / "b",
        mode="geometric",
        device="cuda",
        dtype="float32",
        **common,
    )
    heal_bundle(tmp_path / "b", out=tmp_path / "h", steps=30, scope=scope, device="cuda", sequence_length=256)
    assert load_bundle(tmp_path / "h").manifest.layers[0].mode == "geometric"
    before, after = (
        evaluate_bundle(tmp_path / name, text=text, max_tokens=20_000, device="cuda", **more)["delta_pct"]
        for name, more in (("b", {}), ("h", {"against": str(DEMO / "checkpoint")}))
    )
    assert after < before


def test_a_recorded_step_heals_like_one_launched_piece_by_piece(tmp_path: Path) -> None:
    convert_checkpoint(
        str(DEMO / "checkpoint"), out=tmp_path / "b", mode="geometric", device="cuda", dtype="float32",
        calibration=str(DEMO / "books.txt"), tokens=30_000, sequence_length=128, alpha=0.1,
    )  # fmt: skip
    found = [
        heal_bundle(
            tmp_path / "b", out=tmp_path / str(recorded), steps=24, scope="all", sampled=0.25, device="cuda",
            sequence_length=256, batch_tokens=2048, validation_tokens=4096, checks=4, recorded=recorded,
        ).record["checks"]
        for recorded in (False, True)
    ]  # fmt: skip
    plain, replayed = ([check["divergence"] for check in checks] for checks in found)
    assert replayed == pytest.approx(plain, rel=0.02)
    assert replayed[-1] < 0.8 * replayed[0]
