"""Compare: two evidence files side by side; refused when they do not follow one protocol."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from spectral_convert.evidence import read_evidence
from spectral_runtime.errors import ConfigError


def compare_evidence(first: str | Path, second: str | Path) -> dict[str, Any]:
    """What two evaluations measured in common, and the differences.

    Args:
        first: evidence file of `spectral evaluate`.
        second: another, of the same protocol: same model, texts, windows, dtype.

    Raises:
        ConfigError: different protocols, or nothing in common.
    """
    left, right = read_evidence(first), read_evidence(second)
    require_same_protocol(left, right, f"{first} and {second}")
    rows = [
        {"measure": name, "first": value, "second": right_values[name], "delta": right_values[name] - value}
        for right_values in [measures(right)]
        for name, value in measures(left).items()
        if name in right_values
    ]
    if not rows:
        raise ConfigError(f"{first} and {second}", expected="a measure in common", found="none")
    return {"first": str(first), "second": str(second), "protocol": left.get("protocol"), "measures": rows}


def require_same_protocol(left: dict[str, Any], right: dict[str, Any], where: str) -> None:
    """Raises ConfigError that names every difference; a record without a protocol compares with nothing."""
    mine, other = left.get("protocol"), right.get("protocol")
    remedy = "measure both with the same text, windows, dtype and model"
    if not isinstance(mine, dict) or not isinstance(other, dict):
        raise ConfigError(where, expected="evidence with a protocol", found="none", remedy=remedy)
    keys = sorted(set(mine) | set(other))
    apart = [key for key in keys if mine.get(key) != other.get(key)]
    if apart:
        found = ", ".join(f"{key}: {mine.get(key)} against {other.get(key)}" for key in apart)
        raise ConfigError(where, expected="one protocol", found=found, remedy=remedy)


def measures(record: dict[str, Any]) -> dict[str, float]:
    """The headline numbers of an evaluation by name."""
    found = {key: record.get(key) for key in ("ppl_base", "ppl", "delta_pct", "recall", "kept_mass")}
    if isinstance(record.get("pairs"), dict):
        overall = record["pairs"]["overall"]
        found |= {"pairs accuracy_base": overall["accuracy_base"], "pairs accuracy": overall["accuracy"]}
    for row in record.get("tasks") or []:
        found[f"{row['task']} {row['metric']}"] = row["converted"]
    for row in (record.get("long_context") or {}).get("probes", []):
        found[f"{row['kind']} {row['length']} nats"] = row["nll"]
    return {key: float(value) for key, value in found.items() if value is not None and np.isfinite(value)}
