"""Opens the base model of a conversion: whole in memory, or streamed from its shards a layer at a time."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from spectral_convert.captured import SAMPLE
from spectral_convert.recipe import Recipe
from spectral_convert.stream import open_streamed, stream_of
from spectral_convert.stream.quantised import method_of, refusal_of, widened_view
from spectral_convert.stream.shards import Stored, of_metadata, read_headers, shard_files
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
    if load == "full" or (load == "auto" and _fits(recipe, dtype, hub)):
        model, tokenizer = load_base(
            recipe.model, revision=recipe.revision, dtype=dtype, device=recipe.device, **hub
        )
        model.config._commit_hash = commit_of(recipe, hub)
        return model, tokenizer
    return _streamed(recipe, dtype, hub)


def dtype_of(recipe: Recipe) -> str:
    """The dtype's name, or "auto" for the checkpoint's own."""
    if recipe.dtype != "auto":
        return recipe.dtype
    return "float32" if recipe.device == "cpu" else "auto"


def _fits(recipe: Recipe, dtype: str, hub: Mapping[str, Any]) -> bool:
    """Whether a checkpoint is small beside the free memory, from its configuration and its shards' headers."""
    try:
        config = read_config(recipe, hub)
        if method_of(config) == "fp8":
            return False  # transformers cannot widen it on every machine; the stream can
        found = stored_tensors(recipe, hub)
        stored = found if refusal_of(config) else widened_view(config, found, recipe.model)
    except ModelError:
        return True  # no safetensors, or nothing at all: a full load reads the one and tells the other
    name = (
        str(getattr(config, "dtype", None) or "float32").removeprefix("torch.") if dtype == "auto" else dtype
    )
    size = {"float32": 4, "bfloat16": 2, "float16": 2}.get(name, 4)
    elements = sum(math.prod(tensor.shape) for tensor in stored.values())
    return elements * size < WHOLE_BELOW * free_memory()


def read_config(recipe: Recipe, hub: Mapping[str, Any]) -> Any:
    """The checkpoint's configuration; nothing else is downloaded.

    Raises:
        ModelError: none can be read.
    """
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(recipe.model, revision=recipe.revision, **hub)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelError(recipe.model, expected="a readable config.json", found=reason) from error


def commit_of(recipe: Recipe, hub: Mapping[str, Any]) -> str | None:
    """The commit of a Hub checkpoint whose configuration has been read; None for a folder."""
    if Path(recipe.model).is_dir():
        return None
    from huggingface_hub import try_to_load_from_cache

    places = {"cache_dir": hub.get("cache_dir"), "revision": recipe.revision}
    found = try_to_load_from_cache(recipe.model, "config.json", **places)
    return Path(found).parent.name if isinstance(found, str) else None  # a snapshot's folder is its commit


def stored_tensors(recipe: Recipe, hub: Mapping[str, Any]) -> dict[str, Stored]:
    """Every tensor of a checkpoint, from the headers of its shards; on the Hub only those are downloaded.

    Raises:
        ModelError: a shard is missing, or the repository has no safetensors or does not answer.
    """
    if Path(recipe.model).is_dir():
        return read_headers(shard_files(Path(recipe.model)))
    from huggingface_hub import HfApi, constants

    if constants.HF_HUB_OFFLINE:
        return read_headers(shard_files(checkpoint_folder(recipe, hub)))
    try:
        found = HfApi(token=hub.get("token")).get_safetensors_metadata(recipe.model, revision=recipe.revision)
    except Exception as error:  # the client raises a dozen kinds for one meaning
        reason = str(error).strip().split("\n")[0][:300]
        raise ModelError(recipe.model, expected="safetensors on the Hub", found=reason) from error
    return of_metadata({name: file.tensors for name, file in found.files_metadata.items()})


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
    model.config._commit_hash = commit_of(recipe, hub)
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
    sampled = min(texts["fit"].split.tokens, SAMPLE)
    kept = (texts["certify"].split.tokens + sampled) * width * len(stream.layers)
    stream.spilling, stream.folder = running + kept > budget, folder


def free_memory() -> int:
    """Bytes of memory that can be had now."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        found = next(line for line in lines if line.startswith("MemAvailable"))
        return int(found.split()[1]) * 1024
    except (OSError, StopIteration):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
