"""The verdict: in plain sentences, where geometry helps and where the dense gate wins, from what was measured."""

from __future__ import annotations

from typing import Any

from spectral_convert.report.facts import Facts

SCAN_WINS = 512
"""Up to about this many experts a tree visits as many boxes as there are experts."""


def verdict(facts: Facts) -> list[str]:
    """One sentence a question: what was converted, what it costs in quality, what it gains in time."""
    return [*_layers(facts), *_quality(facts), *_elsewhere(facts), *_time(facts)]


def _layers(facts: Facts) -> list[str]:
    entries = [layer.entry for layer in facts.bundle.layers]
    dense = sum(entry.mode == "dense" for entry in entries)
    routed = [entry for entry in entries if entry.mode == "prefilter"]
    lines = []
    if routed:
        low, high = min(e.candidates for e in routed), max(e.candidates for e in routed)
        spread = str(low) if low == high else f"{low} to {high}"
        lines.append(
            f"{len(routed)} of {len(entries)} layers look at {spread} of {routed[0].rule.experts} experts per token "
            f"instead of all of them; the gate's own arithmetic then chooses {routed[0].rule.top_k}."
        )
    if dense:
        lines.append(
            f"{dense} of {len(entries)} layers keep their dense gate: geometry was not good enough there."
        )
    rest = {e.mode for e in entries} - {"dense", "prefilter"}
    lines += [f"{sum(e.mode == mode for e in entries)} layers run in mode {mode}." for mode in sorted(rest)]
    return lines


def cost(record: dict[str, Any]) -> str:
    """What the interval of a paired perplexity difference allows to say."""
    low, high = record["ci95"]
    change = f"{record['delta_pct']:+.2f} % (95 % interval {low:+.2f} to {high:+.2f} %)"
    if low <= 0 <= high:
        return f"perplexity does not change measurably: {change}, over {record['tokens']} tokens"
    word = "rises" if low > 0 else "falls"
    return f"perplexity {word}: {change}, over {record['tokens']} tokens"


def _quality(facts: Facts) -> list[str]:
    if not facts.evaluation:
        return ["No evaluation is in the bundle, so nothing is claimed about quality."]
    return [f"On text like the calibration's, {cost(facts.evaluation)}."]


def _elsewhere(facts: Facts) -> list[str]:
    lines = [f"On {name}, {cost(record)}." for name, record in facts.evaluations if "ppl_base" in record]
    if not lines:
        lines = ["Other text was not measured: the certificate speaks only for text like the calibration's."]
    for name, record in facts.evaluations:
        if "pairs" in record:
            overall = record["pairs"]["overall"]
            lines.append(
                f"Minimal pairs ({name}): {100 * overall['accuracy_base']:.1f} % right untouched, "
                f"{100 * overall['accuracy']:.1f} % converted (McNemar p = {overall['mcnemar_p']:.2f})."
            )
    return lines


def _time(facts: Facts) -> list[str]:
    experts = max((layer.entry.rule.experts for layer in facts.bundle.layers), default=0)
    if not facts.benches:
        hint = ""
        if experts <= SCAN_WINS:
            hint = (
                f" With {experts} experts the gate is a small matrix product; expect the dense gate to be as fast "
                "or faster until you have measured otherwise."
            )
        return [f"No timings were given, so nothing is claimed about speed.{hint}"]
    return [line for bench in facts.benches for line in _bench_lines(bench)]


def _bench_lines(bench: dict[str, Any]) -> list[str]:
    """Per batch size, the fastest arm that is not the gate against the gate, medians over layers."""
    lines = []
    rows = [row for row in bench.get("rows", []) if {"path", "arm", "batch", "median_us"} <= set(row)]
    for batch in sorted({row["batch"] for row in rows}):
        arms: dict[str, list[float]] = {}
        for row in rows:
            if row["batch"] == batch:
                arms.setdefault(str(row["arm"]), []).append(float(row["median_us"]))
        means = {arm: sum(values) / len(values) for arm, values in arms.items()}
        gate = next((means[arm] for arm in means if arm.startswith(("gate", "dense"))), None)
        others = {arm: value for arm, value in means.items() if not arm.startswith(("gate", "dense"))}
        if gate is None or not others:
            continue
        best = min(others, key=others.__getitem__)
        ratio = gate / others[best]
        says = (
            f"{ratio:.2f}x faster than the gate"
            if ratio > 1
            else f"{1 / ratio:.2f}x slower: the dense gate wins"
        )
        lines.append(f"At {batch} tokens a call, {best} takes {others[best]:.0f} µs a layer, {says}.")
    return lines
