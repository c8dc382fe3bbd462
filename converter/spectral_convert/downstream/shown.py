"""The tables of the downstream evaluations, fit for 80 columns."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.table import Table

from spectral_convert.terminal import table


def downstream_tables(record: dict[str, Any]) -> Iterator[Table]:
    """The tables of whatever parts were measured."""
    if "pairs" in record:
        yield pairs_table(record["pairs"])
    if "tasks" in record:
        yield tasks_table(record["tasks"])
    if "long_context" in record:
        yield position_table(record["long_context"])
        yield probe_table(record["long_context"])


def pairs_table(record: dict[str, Any]) -> Table:
    """Accuracy by phenomenon, the overall line last."""
    rows = [
        (
            row["name"][:30],
            str(row["pairs"]),
            f"{100 * row['accuracy_base']:.1f}%",
            f"{100 * row['accuracy']:.1f}%",
            f"{100 * row['delta']:+.2f}",
            f"{row['mcnemar_p']:.3f}",
        )
        for row in (*record["phenomena"], {"name": "overall", **record["overall"]})
    ]
    return table("minimal pairs", ("phenomenon", "pairs", "base", "converted", "points", "p"), rows)


def tasks_table(rows: list[dict[str, Any]]) -> Table:
    """The harness' metrics."""
    cells = [
        (
            f"{row['task']} {row['metric']}"[:34],
            str(row["samples"] or "-"),
            f"{row['base']:.4f}",
            f"{row['converted']:.4f}",
            f"{row['delta']:+.4f}",
            "-" if row["stderr"] is None else f"{row['stderr']:.4f}",
        )
        for row in rows
    ]
    return table("lm-eval tasks", ("task", "samples", "base", "converted", "delta", "stderr"), cells)


def position_table(record: dict[str, Any]) -> Table:
    """Perplexity by position."""
    rows = [
        (
            f"{row['from']}-{row['to']}",
            str(row["tokens"]),
            f"{row['ppl_base']:.3f}",
            f"{row['ppl']:.3f}",
            f"{row['delta_pct']:+.3f}%",
            f"{row['ci95'][0]:+.2f} to {row['ci95'][1]:+.2f}",
        )
        for row in record["positions"]
    ]
    return table(
        "perplexity by tokens of context", ("context", "tokens", "base", "converted", "delta", "95 %"), rows
    )


def probe_table(record: dict[str, Any]) -> Table:
    """Pass key and copying by length."""
    rows = [
        (
            row["kind"],
            str(row["length"]),
            str(row["trials"]),
            f"{100 * row['token_accuracy_base']:.0f}%",
            f"{100 * row['token_accuracy']:.0f}%",
            f"{row['nll_base']:.3f}",
            f"{row['nll']:.3f}",
            f"{row['ci95'][0]:+.2f} to {row['ci95'][1]:+.2f}",
        )
        for row in record["probes"]
    ]
    columns = ("probe", "length", "trials", "right", "conv.", "nats", "conv.", "95 % of gap")
    return table("tokens right and nats a token, untouched and converted", columns, rows)
