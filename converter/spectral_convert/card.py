"""The model card of a bundle, made from its manifest and its evaluation."""

from __future__ import annotations

from spectral_convert.evaluate import Evaluation
from spectral_runtime.bundle.manifest import LayerEntry, Manifest


def model_card(manifest: Manifest, evaluation: Evaluation) -> str:
    """Markdown: what the bundle is, what was measured, how to load it."""
    base, pair = manifest.base_model, evaluation.perplexity
    low, high = pair.ci95
    rows = [
        _row(entry, quality.recall, quality.kept_mass)
        for entry, quality in zip(manifest.layers, evaluation.layers, strict=True)
    ]
    lines = [
        "---",
        "library_name: spectral",
        f"base_model: {base.id}",
        "base_model_relation: adapter",
        f"tags: [spectral, moe, {base.model_type}]",
        "---",
        f"# Spectral bundle for {base.id}",
        "",
        "Geometric routers for the Mixture-of-Experts layers of the base model; the base weights are not included.",
        "",
        f"Evaluate split ({evaluation.text.documents} documents, {pair.tokens} tokens): perplexity {pair.ppl_base:.4f} "
        f"untouched, {pair.ppl:.4f} converted, {pair.delta_pct:+.3f} % (95 % interval {low:+.3f} to {high:+.3f} %).",
        "",
        "| router | mode | levels | colour | candidates | of experts | recall | kept weight |",
        "|---|---|---|---|---|---|---|---|",
        *rows,
        "",
        "```python",
        "from spectral_runtime import load_model",
        'model, tokenizer = load_model("THIS_FOLDER_OR_HUB_ID")',
        "```",
    ]
    return "\n".join(lines) + "\n"


def _row(entry: LayerEntry, recall: float, kept: float) -> str:
    cells = (
        entry.path,
        entry.mode,
        entry.levels,
        entry.colour,
        entry.candidates or "all",
        entry.rule.experts,
    )
    return "| " + " | ".join(map(str, cells)) + f" | {recall:.4f} | {kept:.4f} |"
