"""What the command line shows: tables fit for 80 columns, plain when not a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """A compact table; the first column is text, the others numbers."""
    result = Table(title=title, title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for number, column in enumerate(columns):
        result.add_column(column, justify="left" if number == 0 else "right", no_wrap=True)
    for row in rows:
        result.add_row(*row)
    return result


def short_path(path: str) -> str:
    """`model.layers.3.mlp.gate` as `3 mlp.gate`: what tells routers apart, in few columns."""
    parts = path.split(".")
    number = next((i for i, part in enumerate(parts) if part.isdigit()), None)
    return path if number is None else f"{parts[number]} {'.'.join(parts[number + 1 :])}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f}%"


def bundle_table(facts: dict[str, Any]) -> Table:
    """The per-layer table of `inspect` and `convert`."""
    columns = ("layer", "mode", "L", "S", "C", "cert C", "E", "K", "var", "recall", "kept", "kB")
    rows = [
        (
            short_path(layer["path"]),
            layer["mode"],
            str(layer["levels"]),
            str(layer["colour"]),
            ("<=" if layer["margin"] is not None else "") + str(layer["candidates"] or "-"),
            f"~{layer['certified_mean']:.1f}"
            if layer["certified_mean"]
            else str(layer["certified_candidates"] or "-"),
            str(layer["experts"]),
            str(layer["top_k"]),
            _share(layer["explained"][-1] if layer["explained"] else None),
            _share(layer["recall"]),
            _share(layer["kept_mass"]),
            f"{layer['bytes'] / 1000:.0f}",
        )
        for layer in facts["layers"]
    ]
    return table(f"{facts['base_model']}: {facts['bytes'] / 1e6:.2f} MB", columns, rows)


def evaluation_table(record: dict[str, Any]) -> Table:
    """The per-layer table of `evaluate`."""
    columns = ("layer", "mode", "candidates", "recall", "kept", "certified", "most lost expert")
    rows = []
    for layer in record["layers"]:
        lost = max(range(len(layer["lost"])), key=layer["lost"].__getitem__)
        worst = f"{lost} ({layer['lost'][lost]}x)" if layer["lost"][lost] else "-"
        shares = (_share(layer["recall"]), _share(layer["kept_mass"]), _share(layer["certified"]))
        rows.append(
            (short_path(layer["path"]), layer["mode"], f"{layer['mean_candidates']:.1f}", *shares, worst)
        )
    return table("routing on the untouched model's hidden states", columns, rows)


def perplexity_line(record: dict[str, Any]) -> str:
    """The headline of an evaluation."""
    low, high = record["ci95"]
    return (
        f"perplexity {record['ppl_base']:.4f} untouched, {record['ppl']:.4f} converted: "
        f"{record['delta_pct']:+.3f} % (95 % interval {low:+.3f} to {high:+.3f} %), {record['tokens']} tokens"
    )


def healing_lines(record: dict[str, Any]) -> str:
    """What a healing cost and gained."""
    before, after = record["held_back_before"], record["held_back_after"]
    moved = max((layer["moved_load"] for layer in record["layers"]), default=0.0)
    return "\n".join(
        [
            f"{record['steps']} steps, {record['tokens']} tokens in {record['seconds']:.0f} s "
            f"({record['tokens_per_second']:,.0f} a second) on {record['device']}; best at step {record['best_step']}",
            f"held-back text: divergence {before['divergence']:.5f} -> {after['divergence']:.5f} nats a token",
            f"expert load: at most {_share(moved)} of a layer's choices moved to other experts",
            f"evaluate split, before: {perplexity_line(record['evaluation_before'])}",
            f"evaluate split, healed: {perplexity_line(record['evaluation_after'])}",
            f"written to {record['path']}",
        ]
    )


def comparison_table(record: dict[str, Any]) -> Table:
    """What two evaluations measured in common."""
    rows = [
        (row["measure"], f"{row['first']:.4f}", f"{row['second']:.4f}", f"{row['delta']:+.4f}")
        for row in record["measures"]
    ]
    return table("same protocol", ("measure", "first", "second", "second - first"), rows)


def bench_table(record: dict[str, Any]) -> Table:
    """The timings of `bench`."""
    rows = [
        (
            short_path(r["path"]),
            r["arm"],
            str(r["batch"]),
            f"{r['median_us']:.1f}",
            f"{r['p90_us']:.1f}",
            _share(r["recall"]),
        )
        for r in record["rows"]
    ]
    return table(
        "hidden state to experts, microseconds a call",
        ("layer", "arm", "batch", "median", "p90", "recall"),
        rows,
    )


def budget_table(record: dict[str, Any]) -> Table:
    """What a budget gave each layer: multiply-adds against the gate's, weight missed and recall on the certify split."""
    rows = [
        (
            short_path(layer["path"]),
            layer["mode"],
            str(layer["levels"]),
            str(layer["colour"]),
            f"{layer['mean_candidates']:.1f}",
            _share(layer["cost"] / layer["gate_cost"]),
            _share(layer["missed"]),
            str(layer["options"]),
        )
        for layer in record["layers"]
    ]
    columns = ("layer", "mode", "L", "S", "mean C", "cost of gate", "missed", "options")
    return table("chosen within the budget", columns, rows)


def budget_lines(record: dict[str, Any], evaluation: dict[str, Any]) -> list[str]:
    """Budget, measurement, verdict."""
    asked = []
    if record["max_increase"] is not None:
        asked.append(f"perplexity at most {record['max_increase']:+g} %")
    if record["min_recall"] is not None:
        asked.append(f"recall at least {record['min_recall']:g} in every layer")
    lines = [
        f"budget: {' and '.join(asked)}; modelled cost {record['cost'] / record['gate_cost']:.2f} of the gates'"
    ]
    if record["rounds"]:
        measured = ", ".join(f"{step['increase_pct']:+.3f} %" for step in record["rounds"])
        lines.append(f"plans measured on the certify split: {measured}")
    excess = {"max_increase": "points of perplexity", "min_recall": "of recall"}
    missed = [f"{value:.4f} {excess[key]}" for key, value in record["over"].items() if value > 0]
    lines.append(
        f"evaluate split: the budget is met ({evaluation['delta_pct']:+.3f} %)"
        if record["met"]
        else f"evaluate split: over the budget by {' and '.join(missed)}"
    )
    return lines


def console() -> Console:
    """Standard output; rich drops colour when it is not a terminal or NO_COLOR is set."""
    return Console(highlight=False, soft_wrap=True)
