"""Polysemy: does the routing of a word differ between its senses; the gate's, and a bundle's routers'."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from spectral_convert.analyse.observe import probabilities
from spectral_convert.analyse.senses import Benchmark, Targets, separate
from spectral_convert.families import classify_router
from spectral_convert.forward import Batch, run_batches
from spectral_convert.text import Window
from spectral_runtime.attaching.attachment import plan_layers
from spectral_runtime.attaching.discovery import RouterSite, find_routers
from spectral_runtime.attaching.layer import AttachedLayer
from spectral_runtime.attaching.load import load_base, load_base_of
from spectral_runtime.attaching.scorer import Scorer
from spectral_runtime.attaching.selection import expert_scores, gate_logits, select_experts
from spectral_runtime.bundle import Bundle, load_bundle
from spectral_runtime.bundle.locate import FOLDER, MANIFEST_FILE
from spectral_runtime.errors import TextError
from spectral_runtime.gate import GateRule
from spectral_runtime.geometry import Geometry

DATA = Path(__file__).parents[1] / "data" / "polysemy.jsonl"
FIELDS = ("lemma", "target", "sense", "pos", "sentence", "start", "end")


@dataclass(frozen=True, slots=True)
class Located:
    """The sentences whose target was found in the tokens."""

    windows: tuple[Window, ...]
    """Up to and with the last sub-token of the target: a causal model has read no further."""
    rows: tuple[dict[str, Any], ...]
    skipped: int


def analyse_polysemy(
    source: str | Path,
    *,
    base: str | None = None,
    data: str | Path | None = None,
    seed: int = 0,
    dtype: str = "float32",
    device: str = "cpu",
) -> dict[str, Any]:
    """Sense separation of every gate and, for a bundle, of its routers on the same hidden states.

    Args:
        source: a model or a bundle; hub id or folder.
        base: where a bundle's base model lies now.
        data: JSONL rows with lemma, target, sense, pos, sentence, start, end; None is the built-in set.
        seed: of the bootstrap over lemmas.
        dtype: torch dtype of the model.
        device: torch device.

    Raises:
        UserError: unreadable data, or too few sentences that can be used.
    """
    bundle = load_bundle(source) if _is_bundle(source) else None
    name = base or (bundle.manifest.base_model.id if bundle else str(source))
    if bundle is None:
        model, tokenizer = load_base(name, dtype=dtype, device=device)
    else:
        model, tokenizer = load_base_of(bundle, base, dtype=dtype, device=device)
    sentences = read_sentences(data or DATA)
    located = locate_targets(tokenizer, sentences)
    hidden = _target_states(model, find_routers(model), located.windows)
    rows = list(_score_layers(model, bundle, hidden, _benches(located.rows, seed)))
    record = {
        "lemmas": len({row["lemma"] for row in located.rows}),
        "sentences": len(located.rows),
        "skipped": located.skipped,
        "layers": [row for row in rows if row["part"] == "all"],
        "nouns": [row for row in rows if row["part"] == "nouns"],
    }
    protocol = {
        "model": name, "bundle": Path(source).name if bundle else None, "seed": seed, "dtype": dtype,
        "data_sha256": hashlib.sha256(json.dumps(sentences, sort_keys=True).encode()).hexdigest(),
    }  # fmt: skip
    return {**record, "conclusions": _conclusions(record), "protocol": protocol}


def _is_bundle(source: str | Path) -> bool:
    return any((Path(source) / part).is_file() for part in (MANIFEST_FILE, f"{FOLDER}/{MANIFEST_FILE}"))


def read_sentences(path: str | Path) -> list[dict[str, Any]]:
    """The rows of a benchmark file.

    Raises:
        TextError: not JSONL, a field missing, or a target that is not where the row says.
    """
    rows = []
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
        for number, line in enumerate(lines, 1):
            row = json.loads(line)
            if row["sentence"][row["start"] : row["end"]].lower() != row["target"].lower():
                raise ValueError(f"line {number}: no {row['target']!r} at {row['start']}")
            rows.append({key: row[key] for key in FIELDS})
    except (OSError, ValueError, KeyError, TypeError) as error:
        expected = f"JSONL rows with {', '.join(FIELDS)}"
        raise TextError(str(path), expected=expected, found=f"{type(error).__name__}: {error}") from error
    return rows


def locate_targets(tokenizer: Any, sentences: Sequence[dict[str, Any]]) -> Located:
    """Tokens up to the target's last sub-token, found by character offsets; what cannot be found is counted.

    Raises:
        TextError: a tokenizer without offsets, or fewer than two usable sentences.
    """
    if not getattr(tokenizer, "is_fast", False):
        remedy = "use a checkpoint with tokenizer.json"
        raise TextError("tokenizer", expected="character offsets", found="a slow tokenizer", remedy=remedy)
    windows: list[Window] = []
    rows: list[dict[str, Any]] = []
    for row in sentences:
        encoded = tokenizer(row["sentence"], add_special_tokens=True, return_offsets_mapping=True)
        last = _last_token(encoded["offset_mapping"], row["start"], row["end"])
        if last is not None and last > 0:
            windows.append(Window(len(windows), tuple(encoded["input_ids"][: last + 1])))
            rows.append(row)
    if len({row["lemma"] for row in rows}) < 2:
        raise TextError("polysemy sentences", expected="two usable words or more", found=str(len(rows)))
    return Located(tuple(windows), tuple(rows), len(sentences) - len(rows))


def _last_token(offsets: Sequence[tuple[int, int]], start: int, end: int) -> int | None:
    """Position of the last token that ends with the target; None when a token runs beyond it."""
    inside = [i for i, (first, last) in enumerate(offsets) if first < end and last > start and last > first]
    return inside[-1] if inside and offsets[inside[-1]][1] == end else None


def _target_states(model: Any, sites: Sequence[RouterSite], windows: Sequence[Window]) -> list[torch.Tensor]:
    """The router inputs [N, D] of every layer at each window's last token."""
    stored = [torch.zeros(0)] * len(sites)
    current: list[Batch] = []

    def observe(layer: int, site: RouterSite) -> Any:
        def hook(_: Any, args: Any, __: Any) -> None:
            batch = current[-1]
            states = site.gate_input(args[0])
            states = states.reshape(*batch.ids.shape, -1)
            last = batch.keep.sum(dim=1) - 1
            picked = states[torch.arange(len(last)), last.to(states.device)].detach().clone()
            if not len(stored[layer]):
                stored[layer] = picked.new_zeros((len(windows), picked.shape[-1]))
            stored[layer][list(batch.numbers)] = picked

        return hook

    handles = [site.module.register_forward_hook(observe(i, site)) for i, site in enumerate(sites)]
    try:
        for _ in run_batches(model, windows, "read sentences", current.append):
            pass
    finally:
        for handle in handles:
            handle.remove()
    return stored


def _parts(rows: Sequence[dict[str, Any]]) -> dict[str, np.ndarray]:
    """All sentences; and those of lemmas that are nouns in every sense, where no part of speech helps."""
    mixed = {row["lemma"] for row in rows if row["pos"] != "noun"}
    nouns = np.array([row["lemma"] not in mixed for row in rows])
    parts = {"all": np.ones(len(rows), bool)}
    if len({row["lemma"] for row, keep in zip(rows, nouns, strict=True) if keep}) > 1 and not nouns.all():
        parts["nouns"] = nouns
    return parts


def _targets(rows: Sequence[dict[str, Any]], keep: np.ndarray) -> Targets:
    used = [row for row, kept in zip(rows, keep, strict=True) if kept]
    lemmas = np.unique([row["lemma"] for row in used], return_inverse=True)[1]
    senses = np.unique([f"{row['lemma']}\0{row['sense']}" for row in used], return_inverse=True)[1]
    return Targets(lemmas.ravel(), senses.ravel())


def _benches(rows: Sequence[dict[str, Any]], seed: int) -> dict[str, tuple[np.ndarray, Benchmark]]:
    return {part: (keep, Benchmark.of(_targets(rows, keep), seed)) for part, keep in _parts(rows).items()}


def _score_layers(
    model: Any,
    bundle: Bundle | None,
    hidden: Sequence[torch.Tensor],
    benches: dict[str, tuple[np.ndarray, Benchmark]],
) -> Iterator[dict[str, Any]]:
    sites = find_routers(model)
    layers: Sequence[AttachedLayer | None] = plan_layers(model, bundle) if bundle else [None] * len(sites)
    for number, (site, layer) in enumerate(zip(sites, layers, strict=True)):
        rule = layer.rule if layer else classify_router(site)
        geometry = bundle.layers[number].geometry if bundle else None
        truth: Any = None
        for router, logits, mask in _routers(site, layer, geometry, hidden[number], rule):
            if not torch.isfinite(logits).all():
                continue
            shares = probabilities(expert_scores(rule, logits)).cpu().numpy()
            ids = select_experts(rule, logits, site.choice_bias, mask)[0].cpu().numpy()
            truth = ids if truth is None else truth
            same = (truth[:, :, None] == ids[:, None]).any(axis=2).mean(axis=1)
            for part, (keep, bench) in benches.items():
                recall = None if router == "gate" else float(same[keep].mean())
                scores = dataclasses.asdict(separate(bench, shares[keep], ids[keep]))
                yield {"path": site.path, "router": router, "part": part, "recall": recall, **scores}


def _routers(
    site: RouterSite,
    layer: AttachedLayer | None,
    geometry: Geometry | None,
    states: torch.Tensor,
    rule: GateRule,
) -> Iterator[tuple[str, torch.Tensor, torch.Tensor | None]]:
    """(name, logits [N, E], candidate mask) of the gate, then of what the bundle could route by."""
    with torch.inference_mode():
        yield "gate", gate_logits(rule, states, site.weight, site.bias).float(), None
        if layer is None or geometry is None or layer.scorer is None:
            return
        if layer.mode == "prefilter":
            logits, _, _ = layer.route(states)
            yield "prefilter", logits.float(), layer.candidate_mask(layer.scorer.scores(states))
        yield f"rank {geometry.rank}", layer.scorer.scores(states), None
        points = 3 * geometry.levels
        if geometry.colours:
            yield f"rank {points}, no colour", _leading(layer.scorer, geometry, points, states), None
        if geometry.levels > 1:
            yield "level 1 only", _leading(layer.scorer, geometry, 3, states), None


def _leading(scorer: Scorer, geometry: Geometry, rank: int, states: torch.Tensor) -> torch.Tensor:
    """Scores [N, E] by the first `rank` dimensions alone; a centred gate's common part stays."""
    used = list(range(rank)) + list(range(geometry.rank, scorer.projection.shape[0]))
    points = (states.float() - scorer.mean) @ scorer.projection[used].T
    return torch.addmm(scorer.beta, points, scorer.directions[:, used].T)


def _conclusions(record: dict[str, Any]) -> list[str]:
    lines = []
    for router in dict.fromkeys(row["router"] for row in record["layers"]):
        rows = [row for row in record["layers"] if row["router"] == router]
        best = max(rows, key=lambda row: row["auc"])
        low, high = best["auc_ci95"]
        knows = "carries sense" if low > 0.5 else "does not beat chance"
        lines.append(
            f"{router}: best AUC {best['auc']:.3f} ({low:.3f} to {high:.3f}) at {best['path']}, {knows}; "
            f"right sense {100 * best['sense_accuracy']:.1f} %, by majority {100 * best['majority']:.1f} %"
        )
    if record["skipped"]:
        lines.append(f"{record['skipped']} sentences were skipped: the target does not end at a token's end")
    return lines
