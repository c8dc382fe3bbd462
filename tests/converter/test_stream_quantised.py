"""FP8 and MXFP4 checkpoints stream as the plain checkpoint of their widened weights does, bit for bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pico_models import write_checkpoint, write_text
from safetensors.torch import load_file, save_file

from spectral_convert.convert import convert_checkpoint
from spectral_convert.opening import open_model
from spectral_convert.plan import plan_conversion
from spectral_convert.recipe import Recipe
from spectral_convert.stream import open_streamed, stream_of
from spectral_convert.stream.shards import Stored
from spectral_convert.stream.skeleton import FileSlice
from spectral_runtime.attaching.load import load_base
from spectral_runtime.errors import ModelError

BLOCK = (24, 16)
"""Neither divides every size of the pico models, so that the last block is a cut one."""
FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": list(BLOCK)}
E2M1 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
E2M1 = torch.cat([E2M1, -E2M1])


def rewrite(folder: Path, tensors: dict[str, torch.Tensor], quantisation: dict[str, Any]) -> None:
    save_file({k: v.contiguous() for k, v in tensors.items()}, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["quantization_config"] = quantisation
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")


def fp8_checkpoint(folder: Path, family: str = "deepseek_v3") -> tuple[Path, Path]:
    """A plain checkpoint and its FP8 twin, in DeepSeek's style; the plain one holds what the twin means."""
    plain, twin = write_checkpoint(folder / "plain", family), write_checkpoint(folder / "fp8", family)
    tensors, packed = load_file(plain / "model.safetensors"), {}
    for name, tensor in list(tensors.items()):
        packed[name] = tensor
        if tensor.dim() == 2 and ("proj" in name or "experts" in name):
            packed[name], scale = by_blocks(tensor)
            packed[name + "_scale_inv"] = scale
            tensors[name] = widened(packed[name], scale)
    save_file(tensors, plain / "model.safetensors", {"format": "pt"})
    rewrite(twin, packed, FP8)
    return plain, twin


def by_blocks(tensor: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    rows, columns = (-(-size // side) for size, side in zip(tensor.shape, BLOCK, strict=True))
    scale, packed = torch.empty(rows, columns), torch.empty(tensor.shape, dtype=torch.float8_e4m3fn)
    for row in range(rows):
        for column in range(columns):
            place = (
                slice(row * BLOCK[0], (row + 1) * BLOCK[0]),
                slice(column * BLOCK[1], (column + 1) * BLOCK[1]),
            )
            scale[row, column] = tensor[place].abs().max() / 448.0
            packed[place] = (tensor[place] / scale[row, column]).to(torch.float8_e4m3fn)
    return packed, scale


def widened(packed: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Element by element, in the problem's own words."""
    values = packed.float()
    for row in range(values.shape[0]):
        for column in range(values.shape[1]):
            values[row, column] *= scale[row // BLOCK[0], column // BLOCK[1]]
    return values


def mxfp4_checkpoint(folder: Path) -> tuple[Path, Path]:
    """The same for gpt-oss: two E2M1 numbers a byte, a power of two for 32 of them."""
    plain, twin = write_checkpoint(folder / "plain", "gpt_oss"), write_checkpoint(folder / "mxfp4", "gpt_oss")
    tensors, packed = load_file(plain / "model.safetensors"), {}
    generator = torch.Generator().manual_seed(3)
    for name, tensor in list(tensors.items()):
        if not name.endswith(("gate_up_proj", "down_proj")):
            packed[name] = tensor
            continue
        experts, inputs, outputs = tensor.shape
        codes = torch.randint(
            0, 256, (experts, outputs, inputs // 32, 16), generator=generator, dtype=torch.uint8
        )
        powers = torch.randint(
            120, 126, (experts, outputs, inputs // 32), generator=generator, dtype=torch.uint8
        )
        pairs = torch.stack([E2M1[(codes & 15).long()], E2M1[(codes >> 4).long()]], dim=-1).flatten(-2)
        values = pairs * torch.exp2(powers.float() - 127)[..., None]
        tensors[name] = values.reshape(experts, outputs, inputs).transpose(1, 2).contiguous()
        packed[f"{name}_blocks"], packed[f"{name}_scales"] = codes, powers
    save_file(tensors, plain / "model.safetensors", {"format": "pt"})
    rewrite(twin, packed, {"quant_method": "mxfp4"})
    return plain, twin


def streamed(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    from transformers import AutoConfig

    return open_streamed(folder, AutoConfig.from_pretrained(folder), dtype=dtype)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("make", [fp8_checkpoint, mxfp4_checkpoint])
def test_logits_are_those_of_the_widened_weights(make: Any, dtype: str, tmp_path: Path) -> None:
    plain, twin = make(tmp_path)
    ids = torch.arange(24)[None]
    model = streamed(twin, getattr(torch, dtype))
    with torch.no_grad():
        expected = load_base(plain, dtype=dtype)[0](input_ids=ids).logits
        assert torch.equal(model(input_ids=ids).logits, expected)
    stream = stream_of(model)
    assert stream is not None
    assert stream.loads == len(stream.layers)


def test_conversion_gives_the_geometry_of_the_widened_weights(tmp_path: Path) -> None:
    plain, twin = fp8_checkpoint(tmp_path)
    text = str(write_text(tmp_path / "text.txt"))
    few = {"calibration": text, "tokens": 500, "sequence_length": 32, "levels": 2, "alpha": 0.2}
    whole = convert_checkpoint(str(plain), out=tmp_path / "a", load="full", **few)
    found = convert_checkpoint(str(twin), out=tmp_path / "b", **few)  # auto streams what needs widening
    file = Path("spectral") / "spectral.safetensors"
    assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    assert found.evaluation.perplexity == whole.evaluation.perplexity


def test_auto_streams_fp8_and_the_plan_says_so(tmp_path: Path) -> None:
    _, twin = fp8_checkpoint(tmp_path)
    model, _ = open_model(Recipe(model=str(twin), calibration="x"), load="auto", hub={})
    assert stream_of(model) is not None
    record = plan_conversion(str(twin))
    assert (record["load"], record["refused"]) == ("stream", [])


def test_other_methods_are_refused_by_name(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, "olmoe")
    rewrite(folder, load_file(folder / "model.safetensors"), {"quant_method": "gptq", "bits": 4})
    expected = r"plain, FP8 or MXFP4 weights to stream, found weights quantised by gptq .*--load full"
    with pytest.raises(ModelError, match=expected):
        streamed(folder)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda scale: None, "_scale_inv of floats, found no such tensor"),
        (lambda scale: scale.to(torch.float8_e4m3fn), "_scale_inv of floats, found F8_E4M3"),
        (lambda scale: scale[:, :1], r"a scale per block of \(24, 16\), found \(\d, 1\)"),
    ],
)
def test_a_scale_that_does_not_fit_is_named(change: Any, reason: str, tmp_path: Path) -> None:
    _, twin = fp8_checkpoint(tmp_path)
    tensors = load_file(twin / "model.safetensors")
    name = next(name for name, tensor in tensors.items() if name.endswith("o_proj.weight_scale_inv"))
    changed = change(tensors.pop(name))
    rewrite(twin, tensors if changed is None else {**tensors, name: changed}, FP8)
    with pytest.raises(ModelError, match=reason):
        streamed(twin)


def test_a_missing_mxfp4_scale_is_named(tmp_path: Path) -> None:
    _, twin = mxfp4_checkpoint(tmp_path)
    tensors = load_file(twin / "model.safetensors")
    name = next(name for name in tensors if name.endswith("down_proj_scales"))
    del tensors[name]
    rewrite(twin, tensors, {"quant_method": "mxfp4"})
    with pytest.raises(ModelError, match=r"down_proj_scales of .*found no such tensor"):
        streamed(twin)


def test_one_scale_for_a_whole_tensor(tmp_path: Path) -> None:
    _, twin = fp8_checkpoint(tmp_path)
    tensors = load_file(twin / "model.safetensors")
    name = next(name for name in tensors if name.endswith("o_proj.weight"))
    tensors[name + "_scale_inv"] = torch.tensor(0.25)
    rewrite(twin, tensors, FP8)
    found = streamed(twin)
    stream = stream_of(found)
    assert stream is not None
    held = FileSlice(stream.loader.stored[name], torch.float32)
    assert held.get_dtype() == "F32"
    assert torch.equal(held[...], tensors[name].float() * 0.25)
    assert isinstance(stream.loader.stored["model.norm.weight"], Stored)
