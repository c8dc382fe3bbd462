"""Opens the base model of a conversion: whole in memory, or streamed from its shards a layer at a time."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from spectral_convert.recipe import Recipe
from spectral_convert.stream import open_streamed, stream_of
from spectral_convert.stream.shards import read_headers, shard_files
from spectral_convert.text import TextSet
from spectral_runtime.attaching.load import load_base
from spectral_runtime.errors import ConfigError, ModelError

Load = Literal["auto", "stream", "full"]
WHOLE_BELOW = 0.4
"""In `auto`, a model is loaded whole when it takes less than this share of the free memory."""
SPILL_ABOVE = 0.25
"""Activations take at most this share of the free memory unless `memory` says otherwise."""
SHARD_FILES = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja"]


def open_model(recipe: Recipe, *, load: Load, hub: Mapping[str, Any]) -> tuple[Any, Any]:
    """The base model, streamed or whole, and its tokenizer.

    Args:
        recipe: names model, revision, dtype and device.
        load: `stream`, `full`, or `auto`: whole only where it clearly fits.
        hub: `token`, `cache_dir` and `trust_remote_code` for the libraries.

    Raises:
        ModelError: the checkpoint is absent, incomplete, unknown, or cannot be streamed.
    """
    if load not in ("auto", "stream", "full"):
        raise ConfigError("load", expected="auto, stream or full", found=load)
    dtype = dtype_of(recipe)
    if load == "full" or (load == "auto" and _fits(recipe, dtype)):
        return load_base(recipe.model, revision=recipe.revision, dtype=dtype, device=recipe.device, **hub)
    return _streamed(recipe, dtype, hub)


def dtype_of(recipe: Recipe) -> str:
    """The dtype's name, or "auto" for the checkpoint's own."""
    if recipe.dtype != "auto":
        return recipe.dtype
    return "float32" if recipe.device == "cpu" else "auto"


def _fits(recipe: Recipe, dtype: str) -> bool:
    """Whether a local checkpoint is small beside the free memory; what is on the Hub is small until it is here."""
    folder = Path(recipe.model)
    if not folder.is_dir() or not any(folder.glob("*.safetensors")):
        return True
    size = {"float32": 4, "bfloat16": 2, "float16": 2}.get(dtype, 2)
    elements = sum(stored.numel for stored in read_headers(shard_files(folder)).values())
    return elements * size < WHOLE_BELOW * free_memory()


def _streamed(recipe: Recipe, dtype: str, hub: Mapping[str, Any]) -> tuple[Any, Any]:
    import torch
    from transformers import AutoConfig, AutoTokenizer

    folder = checkpoint_folder(recipe, hub)
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), **hub)
        config = AutoConfig.from_pretrained(str(folder), **hub)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelError(str(folder), expected="a complete transformers checkpoint", found=reason) from error
    kind = getattr(config, "dtype", None) or torch.float32 if dtype == "auto" else getattr(torch, dtype)
    model = open_streamed(folder, config, dtype=kind, device=recipe.device)
    if not Path(recipe.model).is_dir():
        model.config._commit_hash = folder.name  # a snapshot's folder is named by its commit
    return model, tokenizer


def checkpoint_folder(recipe: Recipe, hub: Mapping[str, Any]) -> Path:
    """The local folder of the checkpoint, downloaded when it is on the Hub."""
    if Path(recipe.model).is_dir():
        return Path(recipe.model)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    places = {"token": hub.get("token"), "cache_dir": hub.get("cache_dir")}
    try:
        return Path(
            snapshot_download(recipe.model, revision=recipe.revision, allow_patterns=SHARD_FILES, **places)
        )
    except (OSError, ValueError, HfHubHTTPError) as error:
        reason = str(error).strip().splitlines()[0][:300]
        raise ModelError(recipe.model, expected="a folder or a Hub id", found=reason) from error


def budget_activations(model: Any, texts: Mapping[str, TextSet], memory: float | None, folder: Path) -> None:
    """Lets a streamed model spill its activations to `folder` when they would take more than `memory` GiB."""
    stream = stream_of(model)
    if stream is None:
        return
    budget = memory * 2**30 if memory is not None else SPILL_ABOVE * free_memory()
    parameter = next(model.parameters())
    width = int(model.get_input_embeddings().weight.shape[-1]) * parameter.element_size()
    running = sum(texts[name].split.tokens for name in ("fit", "certify")) * width
    kept = (texts["certify"].split.tokens + texts["fit"].split.tokens) * width * len(stream.layers)
    stream.spilling, stream.folder = running + kept > budget, folder


def free_memory() -> int:
    """Bytes of memory that can be had now."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        found = next(line for line in lines if line.startswith("MemAvailable"))
        return int(found.split()[1]) * 1024
    except (OSError, StopIteration):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
