"""Quantised checkpoints: FP8 weights with scales per block, and MXFP4 experts, widened tensor by tensor as they are read."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from spectral_convert.stream.shards import Stored
from spectral_runtime.errors import ModelError

SCALE = "_scale_inv"
FP8 = "F8_E4M3"
IGNORED = (".activation_scale", ".input_scale")
"""Of FP8 kernels that quantise activations too."""


@dataclass(frozen=True, slots=True)
class Quantised:
    """A tensor that is made of two of the checkpoint's."""

    packed: Stored
    scale: Stored
    shape: tuple[int, ...]
    widen: Callable[[torch.Tensor, torch.Tensor, torch.dtype], torch.Tensor]


def method_of(config: Any) -> str | None:
    """The quantisation method of a configuration, or None."""
    method = _stated(config).get("quant_method")
    return None if method is None else str(getattr(method, "value", method))


def _stated(config: Any) -> dict[str, Any]:
    stated = getattr(config, "quantization_config", None) or {}
    return stated if isinstance(stated, dict) else dict(vars(stated))


def refusal_of(config: Any) -> str | None:
    """Why the weights of a configuration cannot be streamed, or None."""
    method = method_of(config)
    if method in (None, *WIDENED):
        return None
    return f"weights quantised by {method}"


def widened_view(config: Any, stored: Mapping[str, Stored], source: str) -> dict[str, Stored | Quantised]:
    """The checkpoint's tensors as a plain checkpoint would name them.

    Args:
        config: of the model; its quantisation method decides.
        stored: what the shards hold.
        source: named in errors.

    Raises:
        ModelError: another method, or a packed tensor without the scale that belongs to it.
    """
    method, reason = method_of(config), refusal_of(config)
    if reason is not None:
        remedy = "save a dequantised copy first, or load it whole with --load full"
        raise ModelError(
            source, expected="plain, FP8 or MXFP4 weights to stream", found=reason, remedy=remedy
        )
    return dict(stored) if method is None else WIDENED[method](_stated(config), stored, source)


def _fp8_view(
    stated: Mapping[str, Any], stored: Mapping[str, Stored], source: str
) -> dict[str, Stored | Quantised]:
    block = tuple(stated.get("weight_block_size") or ())
    found: dict[str, Stored | Quantised] = {}
    for name, tensor in stored.items():
        if name.endswith((SCALE, *IGNORED)):
            continue
        found[name] = tensor
        if tensor.dtype == FP8:
            scale = stored.get(name + SCALE)
            _check_grid(source, name, tensor, scale, block)
            assert scale is not None
            found[name] = Quantised(tensor, scale, tensor.shape, functools.partial(widen_blocks, block=block))
        elif name + SCALE in stored:
            raise ModelError(source, expected=f"{name} in {FP8} beside its scale", found=tensor.dtype)
    return found


def _check_grid(source: str, name: str, tensor: Stored, scale: Stored | None, block: tuple[int, ...]) -> None:
    if scale is None or scale.dtype not in ("F32", "BF16", "F16"):
        kind = "no such tensor" if scale is None else scale.dtype
        raise ModelError(source, expected=f"{name}{SCALE} of floats", found=kind)
    grid = (
        *tensor.shape[:-2],
        *(-(-size // side) for size, side in zip(tensor.shape[-2:], block, strict=False)),
    )
    if scale.numel > 1 and scale.shape != grid:
        expected = f"{name}{SCALE} of {grid}, a scale per block of {block}"
        raise ModelError(source, expected=expected, found=str(scale.shape))


def _mxfp4_view(
    _: Mapping[str, Any], stored: Mapping[str, Stored], source: str
) -> dict[str, Stored | Quantised]:
    found: dict[str, Stored | Quantised] = {}
    for name, tensor in stored.items():
        if name.endswith("_scales"):
            continue
        if not name.endswith("_blocks"):
            found[name] = tensor
            continue
        plain = name.removesuffix("_blocks")
        scale = stored.get(f"{plain}_scales")
        if scale is None or tensor.shape[:-1] != scale.shape or len(scale.shape) != 3:
            shape = "no such tensor" if scale is None else str(scale.shape)
            raise ModelError(source, expected=f"{plain}_scales of {tensor.shape[:-1]}", found=shape)
        experts, rows, groups, packed = tensor.shape
        found[plain] = Quantised(tensor, scale, (experts, groups * packed * 2, rows), widen_mxfp4)
    return found


WIDENED = {"fp8": _fp8_view, "mxfp4": _mxfp4_view}


def widen_blocks(
    packed: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype, *, block: tuple[int, ...]
) -> torch.Tensor:
    """FP8 [..., O, I] times its scale per block [..., o, i], or one for all; multiplied in float32, rounded once.

    The last block of an axis may be cut (DeepSeek-V3: 576 rows in blocks of 128).
    """
    values, grid = packed.to(torch.float32), scale.to(torch.float32)
    if grid.numel() == 1:
        return values.mul_(grid.reshape(())).to(dtype)
    for axis, side in zip((-2, -1), block, strict=True):
        grid = grid.repeat_interleave(side, dim=axis).narrow(axis, 0, values.shape[axis])
    return values.mul_(grid).to(dtype)


def widen_mxfp4(packed: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """MXFP4 blocks [E, O, G, 16] and scales [E, O, G] as [E, I, O], by the library's own arithmetic."""
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    found: torch.Tensor = convert_moe_packed_tensors(packed, scale, dtype=dtype)
    return found
