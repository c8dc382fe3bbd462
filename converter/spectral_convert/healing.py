"""Healing: the whole story of `spectral heal`, from a bundle to one whose routers were trained, on one screen."""

from __future__ import annotations

import dataclasses
import inspect
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spectral_convert.assemble import fit_evidence, healed_bundle
from spectral_convert.card import model_card
from spectral_convert.certify import certify, margin_curve, risk_curve
from spectral_convert.converted import ConvertedLayer
from spectral_convert.evaluate import Evaluation, evaluate_model
from spectral_convert.heal.attention import plainly_causal
from spectral_convert.heal.checkpoint import Checkpoints, heal_digest
from spectral_convert.heal.outcome import heal_evidence, save_checkpoint
from spectral_convert.heal.remeasure import HealedLayer, remeasure
from spectral_convert.heal.settings import HealSettings
from spectral_convert.heal.student import make_student
from spectral_convert.heal.train import Trainer
from spectral_convert.heal.windows import FitText, fit_text
from spectral_convert.licence import base_licence
from spectral_convert.recipe import Recipe, load_recipe
from spectral_convert.text import TextSet, calibration_splits, training_documents
from spectral_convert.tree import build_tree
from spectral_convert.workdir import WorkDir
from spectral_runtime.attaching.discovery import RouterSite, find_routers
from spectral_runtime.attaching.load import load_base, load_base_of
from spectral_runtime.bundle import Bundle, check_target, load_bundle, write_bundle
from spectral_runtime.bundle.manifest import CARRIED, Mode
from spectral_runtime.errors import ConfigError
from spectral_runtime.strict import parse


@dataclass(frozen=True, slots=True)
class Healing:
    """A finished healing: the bundle written, and the record in its `evidence/heal.json`."""

    bundle: Bundle
    record: dict[str, Any]


def heal_bundle(
    bundle: str | Path,
    *,
    out: str | Path,
    base: str | None = None,
    overwrite: bool = False,
    resume: bool = False,
    work: str | Path | None = None,
    **settings: Any,
) -> Healing:
    """Distils the original model's next-token distribution into the converted one (Hinton et al. 2015).

    Args:
        bundle: folder or hub id of the bundle to heal.
        out: folder of the healed one; in the scopes beyond the geometry a whole checkpoint with the bundle inside.
        base: where the base model lies now; None: where the bundle says.
        overwrite: replace what is at `out`, once the new one is complete.
        resume: continue from the checkpoint in the work folder.
        work: folder of the checkpoint, kept; None is `OUT.work`, removed at the end.
        **settings: the fields of `HealSettings`.

    Raises:
        UserError: bad settings or text, a bundle of another model, or a loss that diverges; then the work folder keeps
            the last good state.
    """
    chosen = parse(HealSettings, {k: v for k, v in settings.items() if v is not None}, where="heal")
    target, loaded = _target(Path(out), overwrite), _healable(load_bundle(bundle))
    recipe, options = _recipe(loaded, chosen), {"dtype": chosen.forward_dtype, "device": chosen.device}
    teacher, tokenizer = load_base_of(loaded, base, **options)
    chosen = _fitting(chosen, teacher)
    texts, text = _texts(recipe, tokenizer, chosen)
    student = make_student(teacher, loaded, scope=chosen.scope, mode=chosen.mode)
    folder = Path(work) if work is not None else target.with_name(f"{target.name}.work")
    checkpoints = Checkpoints(WorkDir(folder), heal_digest(loaded, chosen, text))
    healed = Trainer(teacher, student, text, chosen, checkpoints).run(resume)
    seen = remeasure(student, teacher, loaded, texts)
    model, carried = teacher, None
    if chosen.scope != "geometry":
        original = load_base_of(loaded, base)[0]
        carried = save_checkpoint(student, original, tokenizer, folder / "checkpoint")
        model = load_base(folder / "checkpoint", **options)[0]
    sites = find_routers(model)
    layers = [_certified(sites, layer, recipe, texts["certify"]) for layer in seen]
    fresh = healed_bundle(
        loaded, sites, layers,
        recipe=recipe, counts=student.candidates(), splits={name: part.split for name, part in texts.items()},
        carried=carried is not None, out=target / "spectral",
    )  # fmt: skip
    before, after = _evaluations(
        (teacher, model), (loaded, fresh), texts["evaluate"],
        length=recipe.sequence_length, mode=chosen.mode,
    )  # fmt: skip
    record = heal_evidence(chosen, loaded, healed, seen, evaluations=(before, after))
    licence = base_licence(loaded.manifest.base_model)
    written = _write(fresh, layers, after, record, licence=licence, carried=carried, overwrite=overwrite)
    if work is None:
        shutil.rmtree(folder, ignore_errors=True)
    return Healing(written, record)


def _target(out: Path, overwrite: bool) -> Path:
    """Where the result goes; a healed checkpoint that is there may be replaced with all its files."""
    there = out / "spectral"
    whole = overwrite and there.is_dir() and load_bundle(there).manifest.base_model.id == CARRIED
    names = [p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()] if whole else []
    return check_target(out, overwrite=overwrite, carry=names)


def _healable(bundle: Bundle) -> Bundle:
    if bundle.manifest.base_model.id == CARRIED:
        found, remedy = "one that carries a healed model", "heal the bundle it came from, for longer"
        where = str(bundle.path)
        raise ConfigError(where, expected="a bundle of an untouched model", found=found, remedy=remedy)
    return bundle


def _recipe(bundle: Bundle, settings: HealSettings) -> Recipe:
    recipe = load_recipe(bundle.path)
    if settings.calibration is not None:
        recipe = dataclasses.replace(recipe, calibration=settings.calibration)
    if not recipe.calibration:
        remedy = "name the text: --calibration PATH"
        raise ConfigError("heal.calibration", expected="a text", found="none in the recipe", remedy=remedy)
    return recipe


def _fitting(settings: HealSettings, model: Any) -> HealSettings:
    """The settings with a window the model can take, and a step as it can be launched."""
    if settings.records and not plainly_causal(model):
        if settings.recorded:
            found = f"{settings.device}, attention that needs masks"
            raise ConfigError("heal.recorded", expected="attention to all tokens before", found=found)
        settings = dataclasses.replace(settings, recorded=False)
    limit = getattr(model.config, "max_position_embeddings", None) or settings.window
    if settings.sequence_length is None:
        return dataclasses.replace(settings, sequence_length=min(settings.window, limit))
    if settings.window > limit:
        expected, found = f"at most {limit} (the model's positions)", str(settings.window)
        raise ConfigError("heal.sequence_length", expected=expected, found=found)
    return settings


def _texts(recipe: Recipe, tokenizer: Any, settings: HealSettings) -> tuple[dict[str, TextSet], FitText]:
    """The recipe's three splits, and all the text that neither certifies nor evaluates."""
    assert recipe.calibration is not None
    texts = calibration_splits(tokenizer, recipe.calibration, **recipe.splitting)
    text = fit_text(
        training_documents(tokenizer, recipe.calibration, **recipe.splitting),
        separator=tokenizer.eos_token_id, length=settings.window,
        validation_tokens=settings.held_back, seed=settings.seed, device=settings.device,
    )  # fmt: skip
    return texts, text


def _certified(
    sites: Sequence[RouterSite], layer: HealedLayer, recipe: Recipe, unseen: TextSet
) -> ConvertedLayer:
    """Tree, risk curve and certificate of a healed geometry, against the gate of the model it will run in."""
    site = next(site for site in sites if site.path == layer.site.path)
    curve = risk_curve(site, layer.rule, layer.geometry, layer.certify)
    margins = margin_curve(site, layer.rule, layer.geometry, layer.certify, curve)
    certificate = certify(
        curve, margins, unseen.split, alpha=recipe.alpha, top_k=layer.rule.top_k, adaptive=recipe.adaptive
    )
    tree = build_tree(site, layer.geometry)
    return ConvertedLayer(
        site, layer.rule, layer.geometry, layer.explained, tree, curve, margins, certificate
    )


def _evaluations(
    models: tuple[Any, Any], bundles: tuple[Bundle, Bundle], text: TextSet, *, length: int, mode: Mode | None
) -> tuple[Evaluation, Evaluation]:
    """The bundle before and after on the evaluate split, both paired with the original model."""
    teacher, model = models
    reference = None if model is teacher else teacher
    before = evaluate_model(teacher, bundles[0], text, mode=mode, sequence_length=length)
    after = evaluate_model(model, bundles[1], text, sequence_length=length, reference=reference)
    return before, after


def _write(
    bundle: Bundle,
    layers: Sequence[ConvertedLayer],
    evaluation: Evaluation,
    record: dict[str, Any],
    *,
    licence: dict[str, str],
    carried: dict[str, Path] | None,
    overwrite: bool,
) -> Bundle:
    quality = evaluation.as_json()
    evidence = {"fit": fit_evidence(layers), "evaluate": quality, "heal": record}
    return write_bundle(
        bundle.path.parent, bundle.manifest, bundle.layers,
        evidence=evidence, card=model_card(bundle.manifest, quality, licence=licence, healing=record),
        overwrite=overwrite, carry=carried,
    )  # fmt: skip


def _signature() -> inspect.Signature:
    """The keywords of `heal_bundle` with `**settings` spelt out from `HealSettings`."""
    own = [p for p in inspect.signature(heal_bundle).parameters.values() if p.name != "settings"]
    extra = [
        inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=field.type)
        for field in dataclasses.fields(HealSettings)
    ]
    return inspect.Signature([*own, *extra])


heal_bundle.__signature__ = _signature()  # type: ignore[attr-defined]
