"""The model card of a bundle, made from its manifest and its evaluation record."""

from __future__ import annotations

from typing import Any

import yaml

from spectral_runtime.bundle.manifest import CARRIED, Certificate, LayerEntry, Manifest

COLUMNS = (
    "router",
    "mode",
    "levels",
    "colour",
    "candidates",
    "of experts",
    "certified",
    "recall",
    "kept weight",
)
PLACE = "THIS_FOLDER_OR_HUB_ID"


def model_card(
    manifest: Manifest,
    record: dict[str, Any],
    *,
    licence: dict[str, str] | None = None,
    place: str = PLACE,
    healing: dict[str, Any] | None = None,
) -> str:
    """Markdown: what the bundle is, what was measured and promised, how to load it, where it ends.

    Args:
        manifest: of the bundle.
        record: `evidence/evaluate.json`; empty when there is none.
        licence: `license`, `license_name`, `license_link` of the base model, as far as it states them.
        place: the id or folder in the loading example.
        healing: `evidence/heal.json` of a healed bundle.
    """
    weights = "not included; they are loaded from it"
    if manifest.base_model.id == CARRIED:
        weights = (
            "included, healed together with the routers: with its own gates this checkpoint is not usable"
        )
    parts = [
        f"---\n{_metadata(manifest, licence or {})}---\n# Spectral bundle for {_origin(manifest)}",
        "Geometric routers for the Mixture-of-Experts layers of the base model: 3-D projections, expert spheres and a "
        f"prebuilt BVH. The base model's weights are {weights}.",
        _quality(record),
        _healing(healing or {}),
        _table(manifest, record),
        _certificate(manifest),
        _loading(place),
        _limits(manifest),
    ]  # fmt: skip
    return "\n\n".join(part for part in parts if part) + "\n"


def _origin(manifest: Manifest) -> str:
    """The model that was converted, also where the bundle carries a healed one."""
    base = manifest.base_model
    return base.id if base.id != CARRIED else str(manifest.recipe.get("model") or "a healed model")


def _healing(record: dict[str, Any]) -> str:
    if not record:
        return ""
    settings, before = record["settings"], record["evaluation_before"]
    return (
        f"Healed (scope {settings['scope']}) by distillation from the untouched model on {record['tokens']} tokens in "
        f"{record['seconds']:.0f} s on {record['device']}; before, the perplexity was {before['delta_pct']:+.3f} % off."
    )


def _metadata(manifest: Manifest, licence: dict[str, str]) -> str:
    base = manifest.base_model
    fields: dict[str, Any] = {
        "library_name": "spectral",
        "pipeline_tag": "text-generation",
        "base_model": _origin(manifest),
        "base_model_relation": "finetune" if base.id == CARRIED else "adapter",
        "tags": ["spectral", "moe", base.model_type],
        **licence,
    }
    return yaml.safe_dump(fields, sort_keys=False, allow_unicode=True)


def _quality(record: dict[str, Any]) -> str:
    if "ppl" not in record:
        return ""
    low, high = record["ci95"]
    text = record["text"]
    return (
        f"Evaluate split ({text['documents']} documents, {record['tokens']} tokens): perplexity "
        f"{record['ppl_base']:.4f} untouched, {record['ppl']:.4f} converted, {record['delta_pct']:+.3f} % "
        f"(95 % interval {low:+.3f} to {high:+.3f} %)."
    )


def _table(manifest: Manifest, record: dict[str, Any]) -> str:
    measured = {layer["path"]: layer for layer in record.get("layers", [])}
    rows = [_row(entry, measured.get(entry.path, {})) for entry in manifest.layers]
    return "\n".join([_line(COLUMNS), _line(["---"] * len(COLUMNS)), *rows])


def _line(cells: Any) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


def _row(entry: LayerEntry, quality: dict[str, Any]) -> str:
    certified = entry.certificate.candidates if entry.certificate else "-"
    shares = [f"{quality[key]:.4f}" if key in quality else "-" for key in ("recall", "kept_mass")]
    candidates = _sets(entry)
    return _line(
        [
            entry.path,
            entry.mode,
            entry.levels,
            entry.colour,
            candidates,
            entry.rule.experts,
            certified,
            *shares,
        ]
    )


def _sets(entry: LayerEntry) -> str:
    """How many experts' exact logits a token uses."""
    certificate = entry.certificate
    if entry.margin is not None:
        certified = certificate is not None and certificate.margin == entry.margin
        mean = f"{certificate.mean_candidates:.1f} on average, " if certificate and certified else ""
        return f"adaptive: {mean}at most {entry.candidates}"
    return str(entry.candidates or ("none" if entry.mode == "geometric" else "all"))


def _certificate(manifest: Manifest) -> str:
    found: list[Certificate] = [layer.certificate for layer in manifest.layers if layer.certificate]
    if not found:
        return ""
    first = found[0]
    worst = max(certificate.bound for certificate in found)
    return (
        f"Certificate: with the certified number of candidates the expected share of expert weight that a token of "
        f"like text misses is at most {first.alpha:g} per layer (largest finite-sample bound {worst:.4g}), from "
        f"{first.tokens} tokens of {first.documents} documents that were not fitted on."
    )


def _loading(place: str) -> str:
    lines = [
        "```python",
        "from spectral_runtime import load_model",
        f'model, tokenizer = load_model("{place}")',
        "```",
    ]
    return "\n".join(lines)


def _limits(manifest: Manifest) -> str:
    base = manifest.base_model
    pinned = f" at revision `{base.revision}`" if base.revision else ""
    only = "the checkpoint in this repository" if base.id == CARRIED else f"`{base.id}`{pinned}"
    lines = [
        "Limits:",
        "",
        f"- Only for {only}: routers of other weights are refused by their digest.",
        "- The certificate speaks for text like the calibration text; it promises nothing for other text.",
        "- Fewer candidates do not make a model faster by themselves; `spectral bench` measures where they do.",
    ]
    if any(entry.rule.expert_scale for entry in manifest.layers):
        lines.append(
            "- Weights need the base model's scale per expert; without it they are before that scale."
        )
    return "\n".join(lines)
