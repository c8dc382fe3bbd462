"""Streaming gives what a full load gives, in one pass of the disk, a layer at a time."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from pico_models import FAMILIES, pico_documents, write_checkpoint

from spectral_convert.capture import capture_routing
from spectral_convert.captured import SAMPLE
from spectral_convert.forward import run_batches
from spectral_convert.opening import budget_activations
from spectral_convert.stream import open_streamed, stream_of
from spectral_convert.stream.relay import Runner, relay, stop_before
from spectral_convert.stream.shards import read_headers, shard_files
from spectral_convert.stream.spill import spill
from spectral_convert.text import Window, calibration_splits
from spectral_runtime.attaching import find_routers
from spectral_runtime.attaching.load import load_base
from spectral_runtime.errors import ModelError

DIFFERENT_LENGTHS = [Window(n, tuple(range(n, n + length))) for n, length in enumerate((40, 33, 12, 40, 7))]


def streamed(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    from transformers import AutoConfig

    return open_streamed(folder, AutoConfig.from_pretrained(folder), dtype=dtype)


def logits_of(model: Any, monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    monkeypatch.setattr("spectral_convert.forward.BATCH_TOKENS", {"cpu": 64})
    return [logits.clone() for _, logits in run_batches(model, DIFFERENT_LENGTHS, "test")]


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_equal_a_full_load(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_checkpoint(tmp_path, family)
    whole, _ = load_base(folder, dtype="float32")
    expected = logits_of(whole, monkeypatch)
    model = streamed(folder)
    found = logits_of(model, monkeypatch)
    for one, other in zip(expected, found, strict=True):
        assert torch.equal(one, other)
    stream = stream_of(model)
    assert stream is not None
    assert stream.loads == len(stream.layers), "every layer is read once for all batches"


def test_capture_equals_a_full_load(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, "olmoe")
    (tmp_path / "text.txt").write_text("\f".join(pico_documents()), encoding="utf-8")
    whole, tokenizer = load_base(folder, dtype="float32")
    texts = calibration_splits(tokenizer, tmp_path / "text.txt", tokens=2000, length=32, seed=0)
    expected = capture_routing(whole, find_routers(whole), texts)
    model = streamed(folder)
    stream = stream_of(model)
    assert stream is not None
    stream.spilling = True
    found = capture_routing(model, find_routers(model), texts)
    for one, other in zip(expected, found, strict=True):
        assert torch.equal(one.certify, other.certify)
        for name in ("hidden", "logits", "products", "chosen"):
            np.testing.assert_array_equal(getattr(one.moments, name), getattr(other.moments, name))


def test_activations_spill_above_the_budget_and_the_sample_is_counted_as_capped(tmp_path: Path) -> None:
    model = streamed(write_checkpoint(tmp_path, "olmoe"))
    stream = stream_of(model)
    assert stream is not None
    width, layers = 4 * model.config.hidden_size, len(stream.layers)
    texts: Any = {"fit": sized(10_000_000), "certify": sized(1000)}
    needed = (10_001_000 + layers * (SAMPLE + 1000)) * width
    for spare, spills in ((1, False), (-1, True)):
        budget_activations(model, texts, (needed + spare) / 2**30, tmp_path)
        assert stream.spilling is spills


def sized(tokens: int) -> Any:
    return SimpleNamespace(split=SimpleNamespace(tokens=tokens))


def test_only_one_layer_is_in_memory(tmp_path: Path) -> None:
    model = streamed(write_checkpoint(tmp_path, "olmoe", num_hidden_layers=4))
    most = []

    def count(*_: Any) -> None:
        real = [name for name, p in model.named_parameters() if p.device.type != "meta"]
        most.append(len({name.split(".")[2] for name in real if "experts" in name}))

    for layer in model.model.layers:
        layer.mlp.register_forward_hook(count)
    list(run_batches(model, DIFFERENT_LENGTHS, "test"))
    assert set(most) == {1}


def test_sharded_and_original_names(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "a", "mixtral")
    whole, _ = load_base(folder, dtype="float32")
    whole.save_pretrained(tmp_path / "b", max_shard_size="40KB")
    files = shard_files(tmp_path / "b")
    assert len(files) > 2
    assert any("block_sparse_moe" in name for name in read_headers(files))
    ids = torch.arange(9)[None]
    with torch.no_grad():
        assert torch.equal(streamed(tmp_path / "b")(input_ids=ids).logits, whole(input_ids=ids).logits)
    files[1].unlink()
    with pytest.raises(ModelError, match=r"expected the shard .*found no such file"):
        shard_files(tmp_path / "b")


def test_bfloat16_equals_a_full_load(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, "ernie4_5_moe")
    whole, _ = load_base(folder, dtype="bfloat16")
    model = streamed(folder, torch.bfloat16)
    ids = torch.arange(9)[None]
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids).logits, whole(input_ids=ids).logits)


def test_missing_tensor_is_named(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = write_checkpoint(tmp_path, "olmoe")
    tensors = load_file(folder / "model.safetensors")
    tensors.pop("model.norm.weight")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"1 missing, first model\.norm\.weight"):
        streamed(folder)


def test_damaged_shard_is_named(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 20)
    with pytest.raises(ModelError, match=r"model\.safetensors: expected a safetensors header"):
        read_headers(shard_files(tmp_path))


def test_relay_raises_what_a_job_raises_and_leaves_no_thread() -> None:
    def fine() -> str:
        stop_before(0)
        return "never"

    def broken() -> None:
        stop_before(0)
        raise ValueError("inside")

    with pytest.raises(ValueError, match="inside"):
        list(relay([fine, broken, fine], lambda _: None, lambda _: None))
    assert not [thread for thread in threading.enumerate() if isinstance(thread, Runner)]


def test_relay_can_be_left_early() -> None:
    entered: list[int] = []

    def job() -> str:
        for layer in range(3):
            stop_before(layer)
        return "done"

    results = relay([job, job], entered.append, lambda _: None)
    assert next(results) == "done"
    results.close()
    assert entered == [0, 1, 2]
    assert not [thread for thread in threading.enumerate() if isinstance(thread, Runner)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64])
def test_spilled_tensor_is_the_same(dtype: torch.dtype) -> None:
    tensor = torch.arange(24).reshape(2, 3, 4).to(dtype)
    assert torch.equal(spill(tensor), tensor)
    assert spill(tensor[:0]).shape == (0, 3, 4)
