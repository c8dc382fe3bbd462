"""Convert: the whole story from a checkpoint to a bundle, on one screen."""

from __future__ import annotations

import functools
import inspect
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from tqdm import tqdm

from spectral_convert.assemble import assemble_bundle, fit_evidence
from spectral_convert.capture import capture_routing, warn_rare
from spectral_convert.captured import LayerCapture
from spectral_convert.card import model_card
from spectral_convert.certify import certify, margin_curve, require_disjoint, risk_curve
from spectral_convert.choose import Chosen, Measure, choose_layers, shapes, verdict
from spectral_convert.converted import ConvertedLayer
from spectral_convert.engine import Engine, EngineName, open_engine, require_engine
from spectral_convert.evaluate import Evaluation, evaluate_model
from spectral_convert.families import classify_routers
from spectral_convert.fit import Aim, fit_layer, refine_fit
from spectral_convert.licence import base_licence
from spectral_convert.opening import Load, budget_activations, open_model
from spectral_convert.recipe import Recipe, resolve
from spectral_convert.resume import Fitted, Pieces, base_digest
from spectral_convert.text import TextSet, calibration_splits
from spectral_convert.tree import build_tree
from spectral_convert.workdir import WorkDir
from spectral_runtime.attaching.discovery import find_routers
from spectral_runtime.bundle import Bundle, check_target, write_bundle
from spectral_runtime.gate import GateRule
from spectral_runtime.strict import parse


@dataclass(frozen=True, slots=True)
class Conversion:
    """A finished conversion: the bundle, and how it did on the evaluate split."""

    bundle: Bundle
    evaluation: Evaluation
    budget: dict[str, Any] | None = None
    """What a budget chose for each layer and why, and whether the evaluate split bears it out."""


def convert_checkpoint(
    model: str = "",
    *,
    out: str | Path,
    recipe: Recipe | str | Path | None = None,
    overwrite: bool = False,
    token: str | None = None,
    cache_dir: str | Path | None = None,
    trust_remote_code: bool = False,
    load: Load = "auto",
    memory: float | None = None,
    work: str | Path | None = None,
    engine: EngineName = "local",
    ray_address: str | None = None,
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
        load: `stream` holds one decoder layer at a time, `full` the model, `auto` the model where it clearly fits.
        memory: GiB that activations may take while streaming before they spill to the work folder.
        work: folder of finished pieces, kept; None is `OUT.work`, removed at the end. The same command continues there.
        engine: where layers are fitted: `local`, or `ray` for tasks on a Ray cluster, with the same result.
        ray_address: of the cluster's head; None takes RAY_ADDRESS, or the cluster of this machine.
        **settings: the fields of `Recipe`.

    Raises:
        UserError: bad settings, text, checkpoint or target folder.
    """
    require_engine(engine)
    resolved = resolve(recipe, {"model": model or None, **settings})
    target = check_target(Path(out), overwrite=overwrite)
    hub = {"token": token, "cache_dir": cache_dir, "trust_remote_code": trust_remote_code}
    network, tokenizer = open_model(resolved, load=load, hub=hub)
    rules = classify_routers(sites := find_routers(network))
    texts = _texts(resolved, tokenizer)
    folder = Path(work) if work is not None else target.with_name(f"{target.name}.work")
    pieces = Pieces(WorkDir(folder), resolved, base_digest(network, resolved.model), texts)
    budget_activations(network, texts, memory, folder)
    captures = pieces.capture(sites, lambda: capture_routing(network, sites, texts, sample=resolved.trains))
    warn_rare(captures, resolved.alpha)
    splits = {name: text.split for name, text in texts.items()}
    assemble = functools.partial(assemble_bundle, resolved, network, splits=splits, out=target)
    with open_engine(engine, address=ray_address, device=resolved.device) as fits:
        convert = functools.partial(_convert_layers, fits=fits, captures=captures, rules=rules, texts=texts)
        chosen = _choose(pieces, convert, lambda x: _increase(pieces, network, assemble(layers=x), texts))
    bundle = assemble(layers=chosen.layers)
    evaluation = _evaluate(pieces, network, bundle, texts["evaluate"])
    budget = verdict(chosen.record, evaluation.as_json()) if chosen.record else None
    written = _write(bundle, chosen.layers, evaluation, budget, overwrite=overwrite, token=token)
    if work is None:
        shutil.rmtree(folder, ignore_errors=True)
    return Conversion(written, evaluation, budget)


def _texts(recipe: Recipe, tokenizer: Any) -> dict[str, TextSet]:
    """The three splits; a certificate on the fit's own documents is refused."""
    assert recipe.calibration is not None
    texts = calibration_splits(tokenizer, recipe.calibration, **recipe.splitting)
    require_disjoint(texts["fit"].split, texts["certify"].split)
    return texts


def _convert_layers(
    pieces: Pieces,
    *,
    fits: Engine,
    captures: Sequence[LayerCapture],
    rules: Sequence[GateRule],
    texts: dict[str, TextSet],
) -> Sequence[ConvertedLayer]:
    convert = functools.partial(_convert_layer, pieces, fits, texts["certify"])
    done = fits.map(convert, captures, rules)
    recipe = pieces.recipe
    label = f"fit layers, L {recipe.levels} S {recipe.colour}"
    return list(tqdm(done, total=len(captures), desc=label, disable=None, leave=False))


def _choose(
    pieces: Pieces, convert: Callable[[Pieces], Sequence[ConvertedLayer]], measure: Measure
) -> Chosen:
    """The layers of the recipe; with a budget, every shape of the ladder, and the cheapest plan within it."""
    recipe = pieces.recipe
    if recipe.budget is None:
        return Chosen(tuple(convert(pieces)), {})
    ladder = [convert(pieces.with_shape(*shape)) for shape in shapes(recipe.levels, recipe.colour)]
    return choose_layers(ladder, recipe.budget, measure)


def _increase(pieces: Pieces, network: Any, bundle: Bundle, texts: dict[str, TextSet]) -> float:
    """Percent of perplexity that a plan costs on the certify split; the evaluate split stays unseen."""
    return _evaluate(pieces, network, bundle, texts["certify"]).perplexity.delta_pct


def _convert_layer(
    pieces: Pieces, fits: Engine, unseen: TextSet, capture: LayerCapture, rule: GateRule
) -> ConvertedLayer:
    recipe, site = pieces.recipe, capture.site
    geometry, explained, bvh, curve, margins = pieces.fit(
        site, rule, lambda: fits.call(_fit, capture, rule, recipe)
    )
    certificate = certify(
        curve, margins, unseen.split, alpha=recipe.alpha, top_k=rule.top_k, adaptive=recipe.adaptive
    )
    return ConvertedLayer(site, rule, geometry, explained, bvh, curve, margins, certificate)


def _fit(capture: LayerCapture, rule: GateRule, recipe: Recipe) -> Fitted:
    """All that a layer needs of its own capture; may run on another machine."""
    site, fit = capture.site, fit_layer(capture, rule, levels=recipe.levels, colour=recipe.colour)
    geometry = fit.geometry
    if recipe.trains:
        aim = Aim(recipe.candidates, recipe.adaptive, recipe.seed)
        geometry = refine_fit(site, rule, geometry, capture.sample, aim)
    curve = risk_curve(site, rule, geometry, capture.certify)
    margins = margin_curve(site, rule, geometry, capture.certify, curve)
    return geometry, fit.explained, build_tree(site, geometry), curve, margins


def _evaluate(pieces: Pieces, network: Any, bundle: Bundle, text: TextSet) -> Evaluation:
    def make() -> dict[str, Any]:
        length = pieces.recipe.sequence_length
        return asdict(evaluate_model(network, bundle, text, sequence_length=length))

    key = [[layer.entry for layer in bundle.layers], text.split.sha256]
    return parse(Evaluation, pieces.evaluate(key, make), where="work folder")


def _write(
    bundle: Bundle,
    layers: Sequence[ConvertedLayer],
    evaluation: Evaluation,
    budget: dict[str, Any] | None,
    *,
    overwrite: bool,
    token: str | None,
) -> Bundle:
    evidence: dict[str, Any] = {"fit": fit_evidence(layers), "evaluate": evaluation.as_json()}
    if budget is not None:
        evidence["budget"] = budget
    licence = base_licence(bundle.manifest.base_model, token=token)
    card = model_card(bundle.manifest, evaluation.as_json(), licence=licence)
    return write_bundle(
        bundle.path, bundle.manifest, bundle.layers, evidence=evidence, card=card, overwrite=overwrite
    )


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
