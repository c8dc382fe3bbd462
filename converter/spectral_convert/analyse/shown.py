"""The tables of the analyses, fit for 80 columns."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from spectral_convert.terminal import short_path, table


def experts_table(record: dict[str, Any]) -> Table:
    """One row a layer: load, bits by class and topic, selectivity, groups."""
    columns = ("layer", "eff", "of", "class", "topic", "|token", "lift", "margin", "groups", "stable")
    rows = []
    for layer in record["layers"]:
        groups = layer["clusters"]
        given = layer["topic_given_token"]
        rows.append(
            (
                short_path(layer["path"]),
                f"{layer['load']['effective']:.1f}",
                str(layer["experts"]),
                _number(layer["class"], "bits"),
                _number(layer["topic"], "bits"),
                _number(given, "bits"),
                _number(layer["topic"], "lift_max", 1),
                f"{layer['selectivity']['margin']:.2f}",
                str(len(groups["members"])) if groups else "-",
                _number(groups, "stability", 2),
            )
        )
    return table(f"experts over {record['protocol']['tokens']} tokens, bits a choice", columns, rows)


def polysemy_table(record: dict[str, Any]) -> Table:
    """One row a layer and router."""
    columns = ("layer", "router", "AUC", "95 %", "sense", "major", "ratio", "recall")
    rows = [
        (
            short_path(row["path"]),
            row["router"],
            f"{row['auc']:.3f}",
            f"{row['auc_ci95'][0]:.3f}-{row['auc_ci95'][1]:.3f}",
            f"{row['sense_accuracy']:.3f}",
            f"{row['majority']:.3f}",
            "-" if row["separation"] is None else f"{row['separation']:.3f}",
            "-" if row["recall"] is None else f"{row['recall']:.3f}",
        )
        for row in record["layers"]
    ]
    return table(f"senses of {record['lemmas']} words, {record['sentences']} sentences", columns, rows)


def _number(value: dict[str, Any] | None, key: str, digits: int = 3) -> str:
    return "-" if value is None else f"{value[key]:.{digits}f}"
