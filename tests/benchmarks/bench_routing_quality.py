"""Routing quality as hypotheses: colour, nested levels, refined and adaptive sets, and the coverage of certificates.

python tests/benchmarks/bench_routing_quality.py ../shared/models/olmoe-64e --part colour --device cuda --tokens 1200000 \
    --calibration ../shared/data/calibration --text ../shared/data/heldout

Everything is fitted on calibration documents; the held-out text is only measured on. Perplexities are paired (same windows,
same process) with block-bootstrap 95 % intervals. Parts: `targets`, `colour`, `levels`, `coverage`. Writes
`evidence/PART-NAME.json`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from quality_arms import CONTEXT_LENGTH, Arms, ContextScorer, local_levels

from spectral_convert.capture import capture_routing
from spectral_convert.captured import LayerCapture
from spectral_convert.certify import _see, margin_curve, risk_curve
from spectral_convert.families import classify_routers
from spectral_convert.fit import Aim, fit_layer, refine_fit
from spectral_convert.forward import run_batches, token_losses, watch_routers
from spectral_convert.paired import compare
from spectral_convert.text import TextSet, calibration_splits, whole_text
from spectral_runtime.attaching.attachment import Attachment
from spectral_runtime.attaching.discovery import find_routers
from spectral_runtime.attaching.layer import AttachedLayer
from spectral_runtime.attaching.load import load_base
from spectral_runtime.attaching.scorer import Scorer
from spectral_runtime.geometry import Geometry

EVIDENCE = Path(__file__).parent / "evidence"
COLOURS = (0, 4, 8, 12, 24)
LEVELS = range(1, 9)
REFINED = (1, 2, 4, 8)
"""Levels that are measured refined too."""
ALPHAS = (0.01, 0.03)
SPLITS = 20
TARGETS = {
    "olmoe": ((4, 0, 16), (4, 12, 16), (4, 12, 12)),
    "deepseek": ((4, 12, 24), (8, 24, 18)),
}
"""Levels, colour, candidates (or their mean number)."""


class Bench:
    """One model with its captured routing and the base losses on the held-out text."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.model, tokenizer = load_base(options.model, dtype="float32", device=options.device)
        self.sites = find_routers(self.model)
        self.rules = classify_routers(self.sites)
        self.texts = calibration_splits(
            tokenizer, options.calibration, tokens=options.tokens, length=512, seed=0
        )
        self.captures = capture_routing(self.model, self.sites, self.texts, sample=True)
        whole = whole_text(tokenizer, options.text, CONTEXT_LENGTH)
        windows = tuple(w for w in whole.windows if len(w.ids) == CONTEXT_LENGTH)[:: options.every]
        self.text = TextSet(windows, replace(whole.split, tokens=len(windows) * CONTEXT_LENGTH))
        self._base: list[Any] | None = None

    def losses(self, label: str) -> list[Any]:
        found: list[Any] = [None] * len(self.text.windows)
        for batch, logits in run_batches(self.model, self.text.windows, label):
            for number, loss in zip(batch.numbers, token_losses(batch, logits), strict=True):
                found[number] = loss
        return found

    def measure(self, scorers: list[Any], mode: str, sets: list[tuple[int, float | None]]) -> dict[str, Any]:
        """Paired perplexity with these scorers attached, one (C, margin) a layer."""
        self._base = self._base or self.losses("base")
        layers = tuple(
            AttachedLayer(site, rule, mode, count, scorer, margin=margin)  # type: ignore[arg-type]
            for site, rule, scorer, (count, margin) in zip(self.sites, self.rules, scorers, sets, strict=True)
        )
        attachment = Attachment(self.model, layers)
        attachment.swap()
        try:
            found = self.losses(mode)
        finally:
            attachment.detach()
        pair = compare(self.text.windows, self._base, found)
        return {"ppl_base": pair.ppl_base, "ppl": pair.ppl, "delta_pct": pair.delta_pct, "ci95": pair.ci95}

    def held_out(self, tokens: int = 60_000) -> list[torch.Tensor]:
        """Router inputs [T, D] of every layer on evenly taken held-out windows."""
        step = max(1, len(self.text.windows) * CONTEXT_LENGTH // tokens)
        kept: list[list[torch.Tensor]] = [[] for _ in self.sites]
        windows = self.text.windows[::step]
        for _ in watch_routers(
            self.model, self.sites, windows, "held out", lambda i, h, _: kept[i].append(h.clone())
        ):
            pass
        return [torch.cat(parts) for parts in kept]

    def fit(self, levels: int, colour: int, aim: Aim | None) -> list[Geometry]:
        """Closed forms, refined where an aim is given."""
        fits = []
        for capture, rule in zip(self.captures, self.rules, strict=True):
            geometry = fit_layer(capture, rule, levels=levels, colour=colour).geometry
            if aim is not None:
                geometry = refine_fit(capture.site, rule, geometry, capture.sample, aim)
            fits.append(geometry)
        return fits

    def scorers(self, fits: list[Geometry]) -> list[Scorer]:
        return [Scorer.of(geometry, self.options.device) for geometry in fits]

    def rows(self) -> Iterator[tuple[LayerCapture, Any]]:
        return zip(self.captures, self.rules, strict=True)


def routing(bench: Bench, fits: list[Geometry], count: int, hidden: list[torch.Tensor]) -> dict[str, float]:
    """Recall and missed weight at `count` candidates on held-out router inputs, mean over layers."""
    curves = [
        risk_curve(site, rule, fit, states)
        for site, rule, fit, states in zip(bench.sites, bench.rules, fits, hidden, strict=True)
    ]
    return {
        "recall": float(np.mean([1 - curve.lost[count] for curve in curves])),
        "missed": float(np.mean([curve.missed[count] for curve in curves])),
    }


def targets(bench: Bench) -> Iterator[dict[str, Any]]:
    """Closed form, refined, and adaptive sets of the same mean size, at the sizes that issue 4 names."""
    for levels, colour, count in next(rows for name, rows in TARGETS.items() if name in bench.options.model):
        for kind in ("closed", "refined", "adaptive"):
            aim = None if kind == "closed" else Aim(count, adaptive=kind == "adaptive", seed=0)
            fits = bench.fit(levels, colour, aim)
            sets: list[tuple[int, float | None]] = [(count, None)] * len(fits)
            if kind == "adaptive":
                sets = [
                    _sets_of(capture, rule, fit, count)
                    for (capture, rule), fit in zip(bench.rows(), fits, strict=True)
                ]
            row = {"levels": levels, "colour": colour, "candidates": count, "kind": kind}
            sizes = _sizes(bench, fits, sets) if kind == "adaptive" else float(count)
            yield row | {"mean_size": sizes} | bench.measure(bench.scorers(fits), "prefilter", sets)


def _sets_of(capture: LayerCapture, rule: Any, geometry: Geometry, count: int) -> tuple[int, float | None]:
    """Cap and margin whose mean size on the certify split is `count`."""
    curve = risk_curve(capture.site, rule, geometry, capture.certify)
    margins = margin_curve(capture.site, rule, geometry, capture.certify, curve)
    at = int(np.searchsorted(margins.sizes, count, side="right")) - 1
    return margins.cap, float(margins.margins[at])


def _sizes(bench: Bench, fits: list[Geometry], sets: list[tuple[int, float | None]]) -> float:
    """Mean set size on held-out router inputs."""
    hidden = bench.held_out()
    layers = [
        AttachedLayer(site, rule, "prefilter", count, scorer, margin=margin)
        for site, rule, scorer, (count, margin) in zip(
            bench.sites, bench.rules, bench.scorers(fits), sets, strict=True
        )
    ]
    return float(
        np.mean([float(layer.set_sizes(h).double().mean()) for layer, h in zip(layers, hidden, strict=True)])
    )


def colour(bench: Bench) -> Iterator[dict[str, Any]]:
    """S further dimensions as colour, as plain residual, as code of the context, at C = 2 K; closed form but for `refined`."""
    hidden, count = bench.held_out(), 2 * bench.rules[0].top_k
    arms = Arms(bench.model, bench.sites, bench.captures, bench.rules, bench.texts["fit"])
    for size in COLOURS:
        for kind in ("none",) if size == 0 else ("colour", "plain", "context", "refined"):
            row: dict[str, Any] = {"levels": 4, "colour": size, "candidates": count, "kind": kind}
            if kind == "context":
                scorers: list[Any] = [ContextScorer.of(*parts) for parts in arms.context(size)]
                recall = {}
            else:
                aim = Aim(count, adaptive=False, seed=0) if kind == "refined" else None
                fits = arms.plain(size) if kind == "plain" else bench.fit(4, size, aim)
                scorers, recall = bench.scorers(fits), routing(bench, fits, count, hidden)
            yield row | recall | bench.measure(scorers, "prefilter", [(count, None)] * len(scorers))


def levels(bench: Bench) -> Iterator[dict[str, Any]]:
    """L nested levels, refined or not, against levels whose second and further projections belong to clusters of experts."""
    hidden, count = bench.held_out(), 2 * bench.rules[0].top_k
    for number in LEVELS:
        explained = [fit_layer(c, r, levels=number, colour=0).explained for c, r in bench.rows()]
        shares = np.mean(np.array(explained), axis=0).round(5).tolist()
        for kind in ("nested", "refined") if number in REFINED else ("nested",):
            aim = Aim(count, adaptive=False, seed=0) if kind == "refined" else None
            found = routing(bench, bench.fit(number, 0, aim), count, hidden)
            yield {"levels": number, "rows": 3 * number, "kind": kind, "explained": shares} | found
        for clusters in (2, 4) if number > 1 else ():
            fits = [local_levels(c, r, number, clusters) for c, r in bench.rows()]
            found = routing(bench, [fit for fit, _ in fits], count, hidden)
            rows = float(np.mean([rank for _, rank in fits]))
            yield {"levels": number, "rows": rows, "kind": f"local, {clusters} clusters"} | found


def coverage(bench: Bench) -> Iterator[dict[str, Any]]:
    """Certificates on one half of unseen documents, risk on the other: 20 random halves of documents a layer."""
    top_k = bench.rules[0].top_k
    fits = bench.fit(4, 0, Aim(2 * top_k, adaptive=True, seed=0))
    windows = (*bench.texts["certify"].windows, *bench.texts["evaluate"].windows)
    shift = 1 + max(w.document for w in bench.texts["certify"].windows)
    documents = [w.document for w in bench.texts["certify"].windows]
    documents += [shift + w.document for w in bench.texts["evaluate"].windows]
    for layer, (site, rule, fit) in enumerate(zip(bench.sites, bench.rules, fits, strict=True)):
        seen = _per_window(bench, layer, windows)
        tables = _tables(site, rule, Scorer.of(fit, bench.options.device), seen, np.array(documents))
        for alpha in ALPHAS:
            for kind, (missed, tokens) in tables.items():
                yield {"path": site.path, "kind": kind, "alpha": alpha} | _halves(missed, tokens, alpha)


def _per_window(bench: Bench, layer: int, windows: Any) -> list[torch.Tensor]:
    site, kept, rows = bench.sites[layer], [], [0]

    def keep(_: Any, args: Any, __: Any) -> None:
        kept.extend(site.gate_input(args[0]).reshape(rows[0], -1, args[0].shape[-1]))

    handle = site.module.register_forward_hook(keep)
    for batch in _batches(windows):
        rows[0] = len(batch)
        ids = torch.tensor([window.ids for window in batch], device=bench.options.device)
        with torch.inference_mode():
            bench.model(input_ids=ids, use_cache=False)
    handle.remove()
    return kept


def _batches(windows: Any) -> Iterator[list[Any]]:
    """Consecutive windows of one length, at most 64."""
    held: list[Any] = []
    for window in windows:
        if held and (len(held) == 64 or len(window.ids) != len(held[0].ids)):
            yield held
            held = []
        held.append(window)
    yield held


def _tables(
    site: Any, rule: Any, scorer: Scorer, seen: list[torch.Tensor], documents: Any
) -> dict[str, tuple[Any, Any]]:
    """Missed weight [documents, G] summed over tokens, for every C and for a grid of margins, with tokens [documents]."""
    total = int(documents.max()) + 1
    grid = torch.linspace(-2.0, 8.0, 4001, dtype=torch.float64, device=scorer.mean.device)
    fixed, margin, tokens = np.zeros((total, rule.experts + 1)), np.zeros((total, len(grid))), np.zeros(total)
    for hidden, document in zip(seen, documents, strict=True):
        with torch.inference_mode():
            found = _see(site, rule, scorer, hidden)
            shares = found.shares.flatten()
            late = torch.bincount(found.ranks.flatten() + 1, shares, minlength=rule.experts + 1).cumsum(0)
            gaps = found.gaps.masked_fill(found.ranks < rule.top_k, -2.0).flatten().double()
            kept = torch.bincount(torch.bucketize(gaps, grid), shares, minlength=len(grid) + 1).cumsum(0)
        fixed[document] += (len(hidden) - late).cpu().numpy()
        margin[document] += (len(hidden) - kept[: len(grid)]).cpu().numpy()
        tokens[document] += len(hidden)
    return {"fixed": (fixed, tokens), "margin": (margin, tokens)}


def _halves(missed: Any, tokens: Any, alpha: float) -> dict[str, Any]:
    """Risk on the other half of documents where the first half certifies alpha; its standard error over documents."""
    rng, risks, errors = np.random.default_rng(0), [], []
    for _ in range(SPLITS):
        half = rng.permutation(len(tokens)) < len(tokens) // 2
        n = tokens[half].sum()
        bounds = (missed[half].sum(axis=0) + 1) / (n + 1)
        at = int(np.flatnonzero(bounds <= alpha)[0])
        here, weight = missed[~half][:, at], tokens[~half]
        risk = here.sum() / weight.sum()
        risks.append(float(risk))
        errors.append(float(np.sqrt(((here - risk * weight) ** 2).sum()) / weight.sum()))
    return {
        "documents": len(tokens), "tokens": int(tokens.sum()), "splits": SPLITS, "mean_risk": float(np.mean(risks)),
        "within": float(np.mean(np.array(risks) <= alpha)), "largest_risk": float(np.max(risks)),
        "within_two_errors": float(np.mean(np.array(risks) <= alpha + 2 * np.array(errors))),
        "standard_error": float(np.mean(errors)),
    }  # fmt: skip


def main() -> None:
    parts = {"targets": targets, "colour": colour, "levels": levels, "coverage": coverage}
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--part", choices=list(parts), nargs="+", required=True)
    parser.add_argument("--calibration", required=True)
    parser.add_argument("--text", required=True)
    parser.add_argument("--tokens", type=int, default=400_000)
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=EVIDENCE)
    options = parser.parse_args()
    bench = Bench(options)
    for part in options.part:
        record = {"part": part, **described(options, bench), "rows": []}
        for row in parts[part](bench):
            record["rows"].append(row)
            print(
                json.dumps({k: round(v, 5) if isinstance(v, float) else v for k, v in row.items()}),
                flush=True,
            )
            write(options.out / f"{part}-{record['model']}.json", record)


def described(options: argparse.Namespace, bench: Bench) -> dict[str, Any]:
    """Protocol, device and versions."""
    share = f"{options.every}th " if options.every > 1 else ""
    return {
        "model": Path(options.model).name,
        "calibration_tokens": options.tokens,
        "protocol": f"held-out text, every {share}full window of {CONTEXT_LENGTH} tokens, float32, paired",
        "tokens": bench.text.split.tokens,
        "device": torch.cuda.get_device_name() if options.device == "cuda" else "CPU",
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }


def write(file: Path, record: dict[str, Any]) -> None:
    """The record as it stands: what is there outlasts a run that is cut off."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
