"""Inspect: what a bundle holds, per layer, from its manifest and its evidence; no model is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from spectral_runtime.bundle import Bundle, load_bundle
from spectral_runtime.bundle.contents import LayerTensors, arrays_of


def inspect_bundle(bundle: str | Path) -> dict[str, Any]:
    """The facts of a bundle: base model, splits, size, and a record per layer.

    Args:
        bundle: folder or hub id.
    """
    return describe(load_bundle(bundle))


def describe(bundle: Bundle) -> dict[str, Any]:
    """`inspect_bundle` of a loaded one."""
    manifest = bundle.manifest
    quality = _quality(bundle)
    layers = [_layer(layer, quality.get(layer.entry.path, {})) for layer in bundle.layers]
    return {
        "path": str(bundle.path),
        "base_model": manifest.base_model.id,
        "revision": manifest.base_model.revision,
        "model_type": manifest.base_model.model_type,
        "format_version": manifest.format_version,
        "bytes": sum(entry.bytes for entry in manifest.files.values()),
        "splits": {
            name: {"documents": s.documents, "tokens": s.tokens} for name, s in manifest.splits.items()
        },
        "tools": manifest.tools,
        "layers": layers,
    }


def _quality(bundle: Bundle) -> dict[str, dict[str, Any]]:
    file = bundle.path / "evidence" / "evaluate.json"
    if not file.is_file():
        return {}
    return {layer["path"]: layer for layer in json.loads(file.read_text(encoding="utf-8")).get("layers", [])}


def _layer(layer: LayerTensors, quality: dict[str, Any]) -> dict[str, Any]:
    entry, certificate = layer.entry, layer.entry.certificate
    return {
        "path": entry.path,
        "mode": entry.mode,
        "experts": entry.rule.experts,
        "top_k": entry.rule.top_k,
        "score": entry.rule.score,
        "levels": entry.levels,
        "colour": entry.colour,
        "candidates": entry.candidates,
        "margin": entry.margin,
        "certified_mean": certificate.mean_candidates if certificate else None,
        "certified_candidates": certificate.candidates if certificate else None,
        "alpha": certificate.alpha if certificate else None,
        "explained": list(entry.explained),
        "recall": quality.get("recall"),
        "kept_mass": quality.get("kept_mass"),
        "bytes": sum(array.nbytes for array in arrays_of(layer).values()),
    }
