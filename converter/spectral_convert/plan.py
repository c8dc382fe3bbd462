"""Plan: what a conversion would read, need, make and refuse, from the configuration and the shards' headers alone."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from spectral_convert.captured import SAMPLE
from spectral_convert.families import classify_routers
from spectral_convert.families.table import rule_text
from spectral_convert.opening import (
    WHOLE_BELOW,
    commit_of,
    dtype_of,
    free_memory,
    read_config,
    stored_tensors,
)
from spectral_convert.recipe import Recipe, resolve
from spectral_convert.stream.model import decoder_layers, partition
from spectral_convert.stream.quantised import method_of, refusal_of
from spectral_convert.stream.skeleton import empty_model
from spectral_convert.text import SHARES
from spectral_runtime.attaching.discovery import find_routers
from spectral_runtime.errors import ModelError

STREAM_PASSES = 3
"""Capture, evaluation of the untouched model, evaluation of the converted one."""
LAYERS_HELD = 2.2
"""Layers in memory at once while one is converted from the checkpoint's form to the model's."""
FIXED = 2**30
"""Python, torch and the transformers library."""
DISK_RATE = 500e6
"""Bytes a second assumed of the disk; the processor's rate is measured."""
TRAINED = 800 * 2048
"""Tokens that the refinement of a layer sees at most."""
LADDER = 9
"""Shapes that a budget tries at most."""


@dataclass(slots=True)
class Shape:
    """Sizes of a model as it would be loaded."""

    layers: int
    experts: int
    top_k: int
    hidden: int
    rules: list[str]
    routers: list[str]
    layer_bytes: list[int] = field(default_factory=list)
    resident_bytes: int = 0
    active: int = 0
    """Parameters that one token meets."""
    quantised: str | None = None


def plan_conversion(
    model: str = "",
    *,
    out: str | Path | None = None,
    recipe: Recipe | str | Path | None = None,
    token: str | None = None,
    cache_dir: str | Path | None = None,
    trust_remote_code: bool = False,
    **settings: Any,
) -> dict[str, Any]:
    """What `convert_checkpoint` would do with the same arguments; no weight is read or downloaded.

    Args:
        model: hub id or folder; may stand in the recipe instead.
        out: where the bundle would go; its disk is looked at.
        recipe: a recipe or its YAML file; keywords go over it.
        token: Hub token.
        cache_dir: where the Hub keeps downloads.
        trust_remote_code: run Python code that the checkpoint brings.
        **settings: the fields of `Recipe`.

    Raises:
        UserError: bad settings, or a checkpoint whose configuration cannot be read.
    """
    given = {"model": model or None, **settings}
    resolved = resolve(
        recipe, {**given, "calibration": given.get("calibration") or "(any)"} if recipe is None else given
    )
    hub = {"token": token, "cache_dir": cache_dir, "trust_remote_code": trust_remote_code}
    config = read_config(resolved, hub)
    facts = {"model": resolved.model, "revision": commit_of(resolved, hub) or resolved.revision,
             "model_type": config.model_type}  # fmt: skip
    stored, missing = _stored_bytes(resolved, hub)
    try:
        shape = shape_of(resolved, config)
    except ModelError as refusal:
        return {**facts, "refused": [*missing, str(refusal)], "bytes_to_read": stored}
    needs = _needs(resolved, shape, stored, Path(out or "."))
    return {
        **facts,
        **_described(shape),
        **needs,
        "refused": [*missing, *_refusals(resolved, config, shape, needs)],
    }


def _stored_bytes(recipe: Recipe, hub: Mapping[str, Any]) -> tuple[int, list[str]]:
    """Bytes of all shards, from their headers; and what is missing."""
    try:
        return sum(stored.bytes for stored in stored_tensors(recipe, hub).values()), []
    except ModelError as error:  # an absent shard is what a plan is there to tell
        return 0, [str(error)]


def shape_of(recipe: Recipe, config: Any) -> Shape:
    """Sizes and rules of the model that a configuration describes; nothing is allocated.

    Raises:
        ModelError: no routers, or a family that is refused.
    """
    kind = _torch_dtype(recipe, config)
    model = empty_model(config, kind)
    sites = find_routers(model)
    rules = classify_routers(sites)
    prefix, layers = decoder_layers(model)
    resident, streamed = partition(model, prefix, len(layers))
    tensors = {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers())}
    sizes = {name: tensor.numel() * tensor.element_size() for name, tensor in tensors.items()}
    largest = max(rules, key=lambda rule: rule.experts)
    share = largest.top_k / largest.experts
    experts = sum(t.numel() for t in tensors.values() if t.dim() == 3 and len(t) == largest.experts)
    return Shape(
        layers=len(layers),
        experts=largest.experts,
        top_k=largest.top_k,
        hidden=int(sites[0].weight.shape[1]),
        rules=sorted({rule_text(rule) for rule in rules}),
        routers=[site.path for site in sites],
        layer_bytes=[sum(sizes.get(name, 0) for name in names) for names in streamed],
        resident_bytes=sum(sizes.get(name, 0) for name in resident),
        active=int(sum(t.numel() for t in tensors.values()) - experts * (1 - share)),
        quantised=method_of(config),
    )


def _torch_dtype(recipe: Recipe, config: Any) -> torch.dtype:
    name = dtype_of(recipe)
    found: torch.dtype = (
        getattr(config, "dtype", None) or torch.float32 if name == "auto" else getattr(torch, name)
    )
    return found


def _described(shape: Shape) -> dict[str, Any]:
    return {
        "layers": shape.layers, "moe_layers": len(shape.routers), "first_router": shape.routers[0],
        "experts": shape.experts, "top_k": shape.top_k, "rules": shape.rules,
    }  # fmt: skip


def _needs(recipe: Recipe, shape: Shape, stored: int, out: Path) -> dict[str, Any]:
    whole = sum(shape.layer_bytes) + shape.resident_bytes
    streamed = shape.quantised == "fp8" or whole > WHOLE_BELOW * free_memory()
    peak = (
        int(LAYERS_HELD * max(shape.layer_bytes) + shape.resident_bytes + FIXED)
        if streamed
        else whole + FIXED
    )
    rank = 3 * recipe.levels + recipe.colour
    layer = 4 * (
        rank * shape.hidden
        + shape.experts * (4 * recipe.levels + recipe.colour + 8 + 2 * rank)
        + shape.hidden
    )
    kept = SHARES["certify"] * recipe.tokens * shape.hidden * 4
    kept += min(SHARES["fit"] * recipe.tokens, SAMPLE) * shape.hidden * 2 if recipe.trains else 0
    folder = next(path for path in (out.absolute(), *out.absolute().parents) if path.exists())
    work = int((kept + layer) * len(shape.routers))
    return {
        "load": "stream" if streamed else "full",
        "passes": STREAM_PASSES,
        "bytes_to_read": stored * (STREAM_PASSES if streamed else 1),
        "peak_memory": peak,
        "free_memory": free_memory(),
        "largest_layer": max(shape.layer_bytes),
        "bundle_bytes": layer * len(shape.routers),
        "work_bytes": work,
        "free_disk": shutil.disk_usage(folder).free,
        "seconds": _seconds(recipe, shape, stored * STREAM_PASSES if streamed else stored),
    }  # fmt: skip


def _seconds(recipe: Recipe, shape: Shape, read: int) -> float | None:
    """A rough time: multiplications at the rate measured now, reading at an assumed one; None on other devices."""
    if recipe.device != "cpu":
        return None
    size = 512
    a = torch.randn(size, size)
    begun, count = time.perf_counter(), 0
    while time.perf_counter() - begun < 0.1:
        a @ a
        count += 1
    rate = 2 * size**3 * count / (time.perf_counter() - begun)
    evaluated = 2 - SHARES["fit"] - SHARES["certify"]  # the evaluate split runs twice, the others once
    forwards = 2 * shape.active * recipe.tokens * evaluated
    fits = 0 if not recipe.trains else LADDER if recipe.budget else 1
    width = shape.experts + 3 * (3 * recipe.levels + recipe.colour)
    trained = fits * len(shape.routers) * 2 * shape.hidden * width * min(TRAINED, 20 * recipe.tokens)
    return round((forwards + trained) / rate + read / DISK_RATE, 1)


def _refusals(recipe: Recipe, config: Any, shape: Shape, needs: Mapping[str, Any]) -> list[str]:
    found = []
    reason = refusal_of(config)
    if reason is not None and needs["load"] == "stream":
        found.append(f"{reason} cannot be streamed: save a dequantised copy first, or use --load full")
    if needs["peak_memory"] > needs["free_memory"]:
        found.append(
            f"needs {needs['peak_memory'] / 2**30:.1f} GiB of memory, {needs['free_memory'] / 2**30:.1f} are free"
        )
    if needs["work_bytes"] + needs["bundle_bytes"] > needs["free_disk"]:
        found.append(
            f"needs {needs['work_bytes'] / 2**30:.1f} GiB of disk, {needs['free_disk'] / 2**30:.1f} are free"
        )
    certified = SHARES["certify"] * recipe.tokens
    if certified < math.ceil(1 / recipe.alpha) - 1:
        found.append(
            f"alpha {recipe.alpha:g} needs {math.ceil(1 / recipe.alpha) - 1} tokens to certify, {certified:.0f} would be"
        )
    if recipe.candidates is not None and not shape.top_k <= recipe.candidates <= shape.experts:
        found.append(
            f"candidates {recipe.candidates} are not between {shape.top_k} (K) and {shape.experts} (E)"
        )
    return found


def plan_lines(record: Mapping[str, Any]) -> str:
    """The plan for a terminal."""
    lines = [f"{record['model']} ({record['model_type']})"]
    if "layers" in record:
        gib = {key: f"{record[key] / 2**30:.2f} GiB" for key in
               ("bytes_to_read", "peak_memory", "free_memory", "work_bytes", "bundle_bytes", "free_disk")}  # fmt: skip
        lines += [
            f"  layers    {record['layers']}, {record['moe_layers']} with experts, first router {record['first_router']}",
            *(f"  rule      {rule}" for rule in record["rules"]),
            f"  load      {record['load']}, reads {gib['bytes_to_read']}",
            f"  memory    {gib['peak_memory']} at most, {gib['free_memory']} free",
            f"  disk      work {gib['work_bytes']}, bundle {gib['bundle_bytes']}, {gib['free_disk']} free",
            f"  time      {'not estimated on this device' if record['seconds'] is None else _spoken(record['seconds'])}",
        ]
    return "\n".join(lines + [f"  refused   {reason}" for reason in record["refused"]])


def _spoken(seconds: float) -> str:
    return f"about {seconds:.0f} s" if seconds < 120 else f"about {seconds / 60:.0f} min"
