"""Assemble: gathers what the stages returned into a bundle in memory, and into the evidence that goes with it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import spectral_runtime
from spectral_convert.converted import ConvertedLayer
from spectral_convert.recipe import Recipe
from spectral_convert.risk import MarginCurve
from spectral_runtime.attaching.discovery import RouterSite, router_sha256
from spectral_runtime.bundle import Bundle, LayerTensors
from spectral_runtime.bundle.manifest import (
    CARRIED,
    FORMAT_VERSION,
    BaseModel,
    LayerEntry,
    Manifest,
    Mode,
    Split,
    routers_digest,
)
from spectral_runtime.errors import ConfigError
from spectral_runtime.geometry import Geometry

DENSE_ABOVE = 0.5
"""In mode `auto`, a layer that needs more than this share of its experts as candidates keeps its gate."""


def assemble_bundle(
    recipe: Recipe, model: Any, layers: Sequence[ConvertedLayer], splits: dict[str, Split], out: Path
) -> Bundle:
    """The bundle as it will be written, ready to attach; `model` tells type and commit of the base."""
    tensors = tuple(_layer_tensors(recipe, layer) for layer in layers)
    entries = tuple(layer.entry for layer in tensors)
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        base_model=base_model(recipe, model, entries),
        layers=entries,
        splits=splits,
        recipe=dataclasses.asdict(recipe),
        tools=tool_versions(),
    )
    return Bundle(path=out, manifest=manifest, layers=tensors)


def healed_bundle(
    bundle: Bundle,
    sites: Sequence[RouterSite],
    layers: Sequence[ConvertedLayer],
    *,
    recipe: Recipe,
    counts: Mapping[str, int],
    splits: dict[str, Split],
    carried: bool,
    out: Path,
) -> Bundle:
    """The bundle with healed layers in the place of theirs before.

    Args:
        bundle: the one that was healed.
        sites: routers of the model it will run in.
        layers: the healed ones; the others stay as they are.
        recipe: decides the size of adaptive sets anew.
        counts: C of every healed layer by its path; 0 makes it `geometric`, else `prefilter`.
        splits: of the text that certified it.
        carried: the model lies in the folder around the bundle.
        out: where the bundle will lie.
    """
    healed = {layer.site.path: layer for layer in layers}
    tensors = tuple(
        _healed_tensors(
            old, site, healed.get(site.path), _healed_sets(recipe, old, healed.get(site.path), counts)
        )
        for old, site in zip(bundle.layers, sites, strict=True)
    )
    entries = tuple(layer.entry for layer in tensors)
    named = dataclasses.replace(bundle.manifest.base_model, routers_sha256=routers_digest(entries))
    if carried:
        named = dataclasses.replace(named, id=CARRIED, revision=None)
    manifest = dataclasses.replace(
        bundle.manifest, base_model=named, layers=entries, splits=splits, tools=tool_versions()
    )
    return Bundle(path=out, manifest=manifest, layers=tensors)


def _healed_sets(
    recipe: Recipe, old: LayerTensors, layer: ConvertedLayer | None, counts: Mapping[str, int]
) -> tuple[int, float | None]:
    """C and margin of a healed layer: as trained, but for a margin, which fits the old geometry only."""
    count = counts.get(old.entry.path, 0)
    if layer is None or not count or old.entry.margin is None:
        return count, None
    return _candidate_sets(recipe if recipe.adaptive else _like_before(recipe, old.entry), layer)[:2]


def _like_before(recipe: Recipe, entry: LayerEntry) -> Recipe:
    """Asks for adaptive sets of the mean size that they had, where a budget chose them and not the recipe."""
    size = entry.certificate.mean_candidates if entry.certificate else None
    count = max(entry.rule.top_k, round(size or entry.candidates))
    plain = dataclasses.replace(recipe, max_ppl_increase=None, min_recall=None)
    return dataclasses.replace(plain, adaptive=True, candidates=count)


def _healed_tensors(
    old: LayerTensors, site: RouterSite, layer: ConvertedLayer | None, sets: tuple[int, float | None]
) -> LayerTensors:
    entry = dataclasses.replace(old.entry, router_sha256=router_sha256(site))
    if layer is None:
        return dataclasses.replace(old, entry=entry)
    entry = dataclasses.replace(
        entry,
        mode="prefilter" if sets[0] else "geometric",
        candidates=sets[0],
        margin=sets[1],
        nodes=layer.bvh.nodes,
        explained=layer.explained,
        certificate=layer.certificate,
    )
    rows = {
        "gate_weight": _float(site.weight) if entry.gate_rows else None,
        "gate_bias": _float(site.bias) if entry.gate_bias else None,
    }
    return dataclasses.replace(old, entry=entry, geometry=layer.geometry, bvh=layer.bvh, **rows)


def base_model(recipe: Recipe, model: Any, entries: Sequence[LayerEntry]) -> BaseModel:
    """Names the checkpoint and the digest of its routers; the revision is the commit that was really loaded."""
    commit = getattr(model.config, "_commit_hash", None)
    kind = str(model.config.model_type)
    return BaseModel(
        id=recipe.model,
        revision=commit or recipe.revision,
        model_type=kind,
        routers_sha256=routers_digest(entries),
    )


def _layer_tensors(recipe: Recipe, layer: ConvertedLayer) -> LayerTensors:
    mode, count, margin = choose_mode(recipe, layer)
    site, dense = layer.site, mode == "dense"
    rows = recipe.gate_rows and not dense
    entry = LayerEntry(
        path=site.path,
        hidden=int(site.weight.shape[1]),
        rule=layer.rule,
        mode=mode,
        router_sha256=router_sha256(site),
        levels=0 if dense else layer.geometry.levels,
        colour=0 if dense else layer.geometry.colours,
        candidates=count,
        margin=margin,
        nodes=0 if dense else layer.bvh.nodes,
        centred=not dense and layer.geometry.common is not None,
        gate_rows=rows,
        gate_bias=rows and site.bias is not None,
        explained=layer.explained,
        certificate=layer.certificate,
    )
    return LayerTensors(
        entry=entry,
        geometry=None if dense else layer.geometry,
        bvh=None if dense else layer.bvh,
        choice_bias=None if dense else _float(site.choice_bias),
        gate_weight=_float(site.weight) if rows else None,
        gate_bias=_float(site.bias) if rows else None,
    )


def _float(tensor: Any) -> np.ndarray | None:
    return (
        None
        if tensor is None
        else np.ascontiguousarray(tensor.detach().float().cpu().numpy().reshape(tensor.shape))
    )


def choose_mode(recipe: Recipe, layer: ConvertedLayer) -> tuple[Mode, int, float | None]:
    """Mode, C and margin of one layer: what a budget chose, what the recipe says, or what the certificate allows.

    Raises:
        ConfigError: when the recipe's candidates do not fit the layer.
    """
    if layer.choice is not None:
        return layer.choice.mode, layer.choice.candidates, layer.choice.margin
    experts, top_k = layer.rule.experts, layer.rule.top_k
    if recipe.candidates is not None and not top_k <= recipe.candidates <= experts:
        where = f"recipe.candidates ({layer.site.path})"
        raise ConfigError(where, expected=f"{top_k} (K) to {experts} (E)", found=str(recipe.candidates))
    count, margin, mean = _candidate_sets(recipe, layer)
    if recipe.mode == "auto":
        return ("dense", 0, None) if mean > DENSE_ABOVE * experts else ("prefilter", count, margin)
    return (recipe.mode, count, margin) if recipe.mode == "prefilter" else (recipe.mode, 0, None)


def _candidate_sets(recipe: Recipe, layer: ConvertedLayer) -> tuple[int, float | None, float]:
    """C, margin and mean size: what is asked, else what is certified."""
    certificate = layer.certificate
    if recipe.candidates is None:
        mean = certificate.mean_candidates
        return certificate.candidates, certificate.margin, mean or float(certificate.candidates)
    if not recipe.adaptive:
        return recipe.candidates, None, float(recipe.candidates)
    curve = layer.margins
    at = int(np.searchsorted(curve.sizes, recipe.candidates, side="right")) - 1
    # Sets of one size stay where margins gain nothing.
    if at < 0 or curve.missed[at] >= layer.curve.missed[recipe.candidates]:
        return recipe.candidates, None, float(recipe.candidates)
    return curve.cap, float(curve.margins[at]), float(curve.sizes[at])


def tool_versions() -> dict[str, str]:
    """Versions of what decides the bundle's bytes."""
    import torch
    import transformers

    return {
        "spectral": spectral_runtime.__version__,
        "numpy": np.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def ranks_of(geometry: Geometry) -> list[int]:
    """The rank after each level, then after the colour: where `explained` was taken."""
    steps = [3 * level for level in range(1, geometry.levels + 1)]
    return [*steps, geometry.rank] if geometry.colours else steps


def fit_evidence(layers: Sequence[ConvertedLayer]) -> list[dict[str, Any]]:
    """Per layer: explained variance by level, and recall and missed weight for every number of candidates."""
    return [
        {
            "path": layer.site.path,
            "experts": layer.rule.experts,
            "top_k": layer.rule.top_k,
            "ranks": ranks_of(layer.geometry),
            "explained": list(layer.explained),
            "certify_tokens": layer.curve.tokens,
            "recall_at_candidates": (1.0 - layer.curve.lost).round(6).tolist(),
            "missed_mass_at_candidates": layer.curve.missed.round(6).tolist(),
            "adaptive": _margin_evidence(layer.margins),
        }
        for layer in layers
    ]


def _margin_evidence(curve: MarginCurve) -> dict[str, Any]:
    """Every 32nd margin: its mean set size and missed weight."""
    rows = slice(None, None, 32)
    columns = {"margin": curve.margins, "mean_size": curve.sizes, "missed_mass": curve.missed}
    return {"cap": curve.cap} | {name: values[rows].round(6).tolist() for name, values in columns.items()}
