"""Convert: the whole story from a checkpoint to a bundle, on one screen."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from tqdm import tqdm

from spectral_convert.assemble import ConvertedLayer, assemble_bundle, fit_evidence
from spectral_convert.capture import capture_routing, warn_rare
from spectral_convert.captured import LayerCapture
from spectral_convert.card import model_card
from spectral_convert.certify import certify_layer, require_disjoint, risk_curve
from spectral_convert.evaluate import Evaluation, evaluate_model
from spectral_convert.families import classify_routers
from spectral_convert.fit import fit_layer
from spectral_convert.recipe import Recipe, resolve
from spectral_convert.text import TextSet, calibration_splits
from spectral_convert.tree import build_tree
from spectral_runtime.attach.discovery import find_routers
from spectral_runtime.attach.load import load_base
from spectral_runtime.bundle import Bundle, check_target, write_bundle


@dataclass(frozen=True, slots=True)
class Conversion:
    """A finished conversion: the bundle, and how it did on the evaluate split."""

    bundle: Bundle
    evaluation: Evaluation


def convert_checkpoint(
    model: str = "",
    *,
    out: str | Path,
    recipe: Recipe | str | Path | None = None,
    overwrite: bool = False,
    token: str | None = None,
    cache_dir: str | Path | None = None,
    trust_remote_code: bool = False,
    **settings: Any,
) -> Conversion:
    """Converts a Mixture-of-Experts checkpoint into a spectral bundle.

    Args:
        model: hub id or folder; may stand in the recipe instead.
        out: folder of the bundle; written beside and renamed, so nothing half-written is ever there.
        recipe: a recipe or its YAML file; keywords go over it.
        overwrite: replace a bundle that is already there, once the new one is complete.
        token: Hub token; None uses the one of the login. Never stored.
        cache_dir: where the Hub keeps downloads.
        trust_remote_code: run Python code that the checkpoint brings.
        **settings: the fields of `Recipe`.

    Raises:
        UserError: bad settings, text, checkpoint or target folder.
    """
    resolved = resolve(recipe, {"model": model or None, **settings})
    target = check_target(Path(out), overwrite=overwrite)
    hub = {"token": token, "cache_dir": cache_dir, "trust_remote_code": trust_remote_code}
    network, tokenizer = load_base(
        resolved.model, revision=resolved.revision, dtype=_dtype(resolved), device=resolved.device, **hub
    )
    sites = find_routers(network)
    rules = classify_routers(sites)
    assert resolved.calibration is not None
    texts = calibration_splits(
        tokenizer, resolved.calibration,
        tokens=resolved.tokens, length=resolved.sequence_length, seed=resolved.seed,
        field=resolved.text_field, chat_template=resolved.chat_template,
    )  # fmt: skip
    require_disjoint(texts["fit"].split, texts["certify"].split)
    captures = capture_routing(network, sites, texts)
    warn_rare(captures, resolved.alpha)
    layers = [
        _convert_layer(resolved, capture, rule, texts["certify"])
        for capture, rule in tqdm(
            list(zip(captures, rules, strict=True)), desc="fit layers", disable=None, leave=False
        )
    ]
    splits = {name: text.split for name, text in texts.items()}
    bundle = assemble_bundle(resolved, network, layers, splits, target)
    evaluation = evaluate_model(network, bundle, texts["evaluate"], sequence_length=resolved.sequence_length)
    return Conversion(_write(bundle, layers, evaluation, overwrite), evaluation)


def _convert_layer(recipe: Recipe, capture: LayerCapture, rule: Any, certify: TextSet) -> ConvertedLayer:
    fit = fit_layer(capture, rule, levels=recipe.levels, colour=recipe.colour)
    bvh = build_tree(capture.site, fit.geometry)
    curve = risk_curve(capture.site, rule, fit.geometry, capture.certify)
    certificate = certify_layer(curve, certify.split, alpha=recipe.alpha, top_k=rule.top_k)
    return ConvertedLayer(capture.site, rule, fit.geometry, fit.explained, bvh, curve, certificate)


def _write(
    bundle: Bundle, layers: Sequence[ConvertedLayer], evaluation: Evaluation, overwrite: bool
) -> Bundle:
    evidence = {"fit": fit_evidence(layers), "evaluate": evaluation.as_json()}
    card = model_card(bundle.manifest, evaluation.as_json())
    return write_bundle(
        bundle.path, bundle.manifest, bundle.layers, evidence=evidence, card=card, overwrite=overwrite
    )


def _dtype(recipe: Recipe) -> str:
    if recipe.dtype != "auto":
        return recipe.dtype
    return "float32" if recipe.device == "cpu" else "auto"


def _signature() -> inspect.Signature:
    """The keywords of `convert_checkpoint` with `**settings` spelt out from the recipe: one source of truth."""
    own = [p for p in inspect.signature(convert_checkpoint).parameters.values() if p.name != "settings"]
    extra = [
        inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=field.type)
        for field in fields(Recipe)
        if field.name != "model"
    ]
    return inspect.Signature([*own, *extra])


convert_checkpoint.__signature__ = _signature()  # type: ignore[attr-defined]
