"""Evaluate: the converted model against the untouched one, same tokens, same process."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from spectral_convert.downstream.parts import Parts, Routing, measure_parts
from spectral_convert.evidence import write_evidence
from spectral_convert.forward import Batch, run_batches, token_losses, watch_routers
from spectral_convert.paired import PairedPerplexity, compare
from spectral_convert.stream import stream_of
from spectral_convert.text import TextSet, whole_text
from spectral_runtime.attaching.attachment import attach, plan_layers
from spectral_runtime.attaching.discovery import find_routers, router_sha256
from spectral_runtime.attaching.layer import AttachedLayer
from spectral_runtime.attaching.load import load_base, load_base_of
from spectral_runtime.attaching.selection import gate_logits, select_experts
from spectral_runtime.bundle import Bundle, load_bundle
from spectral_runtime.bundle.manifest import CARRIED, Mode, Split, digest_of_routers
from spectral_runtime.errors import ConfigError


@dataclass(frozen=True, slots=True)
class LayerQuality:
    """How one layer's routing compares with its gate, on the untouched model's hidden states."""

    path: str
    mode: str
    mean_candidates: float
    """Experts per token whose exact logit is used: C or the mean set, or E where the gate itself runs, or 0."""
    recall: float
    """Share of the gate's K experts that are chosen too."""
    kept_mass: float
    """Share of the gate's expert weight that those carry."""
    certified: float
    """Share of tokens whose residual bound proves the choice from the geometry alone."""
    lost: tuple[int, ...]
    """[E], how often each expert was the gate's choice but not ours."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One evaluation: protocol, perplexities, routing quality."""

    text: Split
    sequence_length: int
    perplexity: PairedPerplexity
    layers: tuple[LayerQuality, ...]

    def as_json(self) -> dict[str, Any]:
        """The evidence record; keys are part of the command line's contract."""
        layers = [dataclasses.asdict(layer) for layer in self.layers]
        means = {
            key: _mean([layer[key] for layer in layers]) for key in ("recall", "kept_mass", "mean_candidates")
        }
        pair = dataclasses.asdict(self.perplexity)
        keys = ("tokens", "ppl_base", "ppl", "delta_pct", "ci95", "blocks")
        protocol = {"text": dataclasses.asdict(self.text), "sequence_length": self.sequence_length}
        certified = _mean([layer["certified"] for layer in layers])
        return {
            **{key: pair[key] for key in keys},
            **means,
            "certified": certified,
            "layers": layers,
            **protocol,
        }


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))


class _Tally:
    """Running sums of one layer."""

    def __init__(self, layer: AttachedLayer) -> None:
        self.layer = layer
        self.tokens, self.hits, self.certified, self.sizes, self.kept = 0, 0, 0, 0, 0.0
        self.lost = np.zeros(layer.rule.experts, np.int64)

    def add(self, hidden: torch.Tensor, weights: torch.Tensor, ids: torch.Tensor) -> None:
        """Counts tokens whose gate chose `ids` [T, K] with `weights` [T, K]."""
        chosen = ids if self.layer.passes_through else self.layer.route(hidden)[1]
        found = (ids.unsqueeze(2) == chosen.unsqueeze(1)).any(dim=2)
        shares = weights.double() / weights.double().sum(dim=1, keepdim=True).clamp(min=1e-30)
        self.tokens += len(ids)
        self.hits += int(found.sum())
        self.kept += float((shares * found).sum())
        self.certified += int(self.layer.certified(hidden).sum())
        self.sizes += int(self.layer.set_sizes(hidden).sum())
        self.lost += torch.bincount(ids[~found], minlength=len(self.lost)).cpu().numpy()

    def result(self) -> LayerQuality:
        layer, rule = self.layer, self.layer.rule
        return LayerQuality(
            path=layer.site.path,
            mode=layer.mode,
            mean_candidates=self.sizes / self.tokens,
            recall=self.hits / (self.tokens * rule.top_k),
            kept_mass=self.kept / self.tokens,
            certified=self.certified / self.tokens,
            lost=tuple(self.lost.tolist()),
        )


def evaluate_model(
    model: Any,
    bundle: Bundle,
    text: TextSet,
    *,
    mode: Mode | None = None,
    candidates: int | None = None,
    sequence_length: int,
    seed: int = 0,
    reference: Any = None,
) -> Evaluation:
    """Paired perplexity and routing quality of a bundle on a text; the model must have no routers attached.

    Args:
        model: the untouched base model.
        bundle: made for it.
        text: windows; each token but a window's first is scored once.
        mode: overrides the layers' modes.
        candidates: overrides C.
        sequence_length: recorded with the result.
        seed: of the bootstrap.
        reference: another model to compare the losses with, of the same tokens: the original of a healed one, whose own
            gates are of no use. Routing quality is then that on the converted model's hidden states.
    """
    layers = plan_layers(model, bundle, mode, candidates)
    tallies = [_Tally(layer) for layer in layers]
    sites = [layer.site for layer in layers]

    def record(layer: int, hidden: torch.Tensor, route: Any) -> None:
        tallies[layer].add(hidden, *route)

    def record_gate(layer: int, hidden: torch.Tensor, _: Any) -> None:
        tallies[layer].add(hidden, *_gate_route(layers[layer], hidden))

    if reference is None:
        base = _losses(text, watch_routers(model, sites, text.windows, "evaluate base", record))
    else:
        base = _losses(text, run_batches(reference, text.windows, "evaluate base"))
    whole = stream_of(model) is None  # one token through a streamed model is a whole pass of the disk
    with attach(model, bundle, mode, candidates=candidates, verify=whole):
        if reference is None:
            runs = run_batches(model, text.windows, "evaluate converted")
        else:
            runs = watch_routers(model, sites, text.windows, "evaluate converted", record_gate)
        converted = _losses(text, runs)
    pair = compare(text.windows, base, converted, seed=seed)
    return Evaluation(text.split, sequence_length, pair, tuple(tally.result() for tally in tallies))


def _gate_route(layer: AttachedLayer, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights and ids [T, K] that the layer's own gate would give."""
    site, rule = layer.site, layer.rule
    logits = gate_logits(rule, hidden, site.weight, site.bias)
    ids, weights = select_experts(rule, logits, site.choice_bias)
    return weights, ids


def _losses(text: TextSet, runs: Any) -> list[NDArray[np.float64]]:
    losses: list[NDArray[np.float64]] = [np.zeros(0)] * len(text.windows)
    batch: Batch
    for batch, logits in runs:
        for number, loss in zip(batch.numbers, token_losses(batch, logits), strict=True):
            losses[number] = loss[text.windows[number].scored_from - 1 :]
    return losses


def evaluate_bundle(
    bundle: str | Path,
    *,
    base: str | None = None,
    against: str | None = None,
    mode: Mode | None = None,
    candidates: int | None = None,
    dtype: str = "float32",
    device: str = "cpu",
    evidence: str | Path | None = None,
    **asked: Any,
) -> dict[str, Any]:
    """The bundle against the untouched model, in one process: text, pairs, tasks, length, as asked.

    Args:
        bundle: folder or hub id.
        base: where the base model lies now; None: where the bundle says.
        against: the model to compare with; None: the untouched base, or, where the bundle carries a healed model, the
            original that its recipe names.
        mode: overrides the layers' modes.
        candidates: overrides C.
        dtype: torch dtype of both models.
        device: torch device.
        evidence: JSON file the record is written to as well.
        **asked: the fields of `Parts`.

    Raises:
        UserError: nothing to evaluate on, unreadable input, or a bundle for another model.
    """
    parts = Parts(**asked)
    parts.check()
    loaded = load_bundle(bundle)
    model, tokenizer = load_base_of(loaded, base, dtype=dtype, device=device)
    reference = _reference(loaded, against, dtype=dtype, device=device)
    routing = Routing(model, tokenizer, loaded, mode, candidates, reference)
    record = {**_text_record(routing, parts), **measure_parts(routing, parts)}
    record |= {"mode": mode, "candidates": candidates, "dtype": dtype, "device": device}
    sites = find_routers(model if reference is None else reference)
    routers = digest_of_routers(router_sha256(site) for site in sites)
    record["protocol"] = parts.protocol(record) | {"dtype": dtype, "base_routers": routers}
    if evidence is not None:
        write_evidence(evidence, "evaluate", record)
    return record


def _reference(bundle: Bundle, against: str | None, **options: Any) -> Any:
    """The model to compare with, when it is not the bundle's own base without its routers."""
    carried = bundle.manifest.base_model.id == CARRIED
    recipe = bundle.manifest.recipe
    if against is None and not carried:
        return None
    if against is None and not recipe.get("model"):
        remedy = "name the original model: --against MODEL"
        raise ConfigError("evaluate.against", expected="a model", found="none in the recipe", remedy=remedy)
    revision = None if against else recipe.get("revision")
    return load_base(against or str(recipe["model"]), revision=revision, **options)[0]


def _text_record(routing: Routing, parts: Parts) -> dict[str, Any]:
    if parts.text is None:
        return {}
    length = parts.sequence_length
    content = whole_text(routing.tokenizer, parts.text, length, parts.max_tokens, stride=parts.stride)
    return evaluate_model(
        routing.model, routing.bundle, content,
        mode=routing.mode, candidates=routing.candidates, sequence_length=length, seed=parts.seed,
        reference=routing.reference,
    ).as_json()  # fmt: skip


def _signature() -> inspect.Signature:
    """The keywords of `evaluate_bundle` with `**asked` spelt out from `Parts`."""
    own = [p for p in inspect.signature(evaluate_bundle).parameters.values() if p.name != "asked"]
    extra = [
        inspect.Parameter(
            field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=field.type
        )
        for field in dataclasses.fields(Parts)
    ]
    return inspect.Signature([*own, *extra])


evaluate_bundle.__signature__ = _signature()  # type: ignore[attr-defined]
