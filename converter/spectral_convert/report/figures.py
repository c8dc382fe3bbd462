"""The plots of a report as Plotly figures in JSON; colours and fonts are the page's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from spectral_convert.report.facts import Facts
from spectral_convert.terminal import short_path


@dataclass(frozen=True, slots=True)
class Figure:
    """One plot with its title and the sentence that says how to read it."""

    name: str
    title: str
    reading: str
    traces: tuple[dict[str, Any], ...]
    layout: dict[str, Any]


def figures(facts: Facts) -> list[Figure]:
    """All plots that the facts allow."""
    made = [*_curves(facts), *_rank(facts), *_coverage(facts), *_latency(facts), *_crossover(facts)]
    return [*made, *_experts(facts), *_polysemy(facts)]


def axes(x: str, y: str, **more: Any) -> dict[str, Any]:
    """A layout with named axes; `x_log` and `y_log` make one logarithmic."""
    layout: dict[str, Any] = {"xaxis": {"title": {"text": x}}, "yaxis": {"title": {"text": y}}}
    for key in ("x", "y"):
        if more.pop(f"{key}_log", False):
            layout[f"{key}axis"]["type"] = "log"
    if more.pop("reverse", False):
        layout["yaxis"]["autorange"] = "reversed"
    if "step" in more:
        layout["xaxis"]["dtick"] = more.pop("step")
    return layout | more


def _curves(facts: Facts) -> Iterator[Figure]:
    if not facts.fit:
        return
    traces = []
    for curve in facts.fit:
        missed = curve["missed_mass_at_candidates"][1:]
        kept = [(c, m) for c, m in enumerate(missed, 1) if m > 0]
        traces.append(_line(short_path(curve["path"]), [c for c, _ in kept], [m for _, m in kept]))
    certified = [
        (layer.entry.certificate.candidates, layer.entry.certificate.risk or None)
        for layer in facts.bundle.layers
        if layer.entry.certificate
    ]
    if certified:
        x, y = zip(*certified, strict=True)
        traces.append(
            {"type": "scatter", "mode": "markers", "name": "certified C", "x": list(x), "y": list(y),
             "marker": {"symbol": "diamond", "size": 10}}
        )  # fmt: skip
    yield Figure(
        "candidates", "Quality against candidates",
        "Share of the chosen experts' weight that the best C candidates miss, on the certify split; lower is better. "
        "Diamonds: the certified number of candidates.",
        tuple(traces), axes("candidates C", "missed weight", y_log=True),
    )  # fmt: skip


def _line(name: str, x: Sequence[Any], y: Sequence[Any]) -> dict[str, Any]:
    return {"type": "scatter", "mode": "lines+markers", "name": name, "x": list(x), "y": list(y),
            "marker": {"size": 4}}  # fmt: skip


def _rank(facts: Facts) -> Iterator[Figure]:
    traces = [
        _line(
            short_path(curve["path"]),
            curve["ranks"],
            [100 * value for value in curve["explained"]],
        )
        for curve in facts.fit
        if curve.get("explained")
    ]
    if traces:
        yield Figure(
            "rank", "Quality against rank",
            "Variance of the gate's logits that the first dimensions explain; three dimensions a level, then colour.",
            tuple(traces), axes("dimensions", "explained, %", step=3),
        )  # fmt: skip


def _coverage(facts: Facts) -> Iterator[Figure]:
    layers = [layer.entry for layer in facts.bundle.layers if layer.entry.certificate]
    if not layers:
        return
    names = [short_path(entry.path) for entry in layers]
    measured = {x["path"]: 100 * (1 - x["kept_mass"]) for x in facts.evaluation.get("layers", [])}
    certificates = [entry.certificate for entry in layers if entry.certificate]
    traces = [
        _bar("promised at most", names, [100 * c.alpha for c in certificates]),
        _bar("bound on the certify split", names, [100 * c.bound for c in certificates]),
        _bar("measured on the evaluate split", names, [measured.get(entry.path) for entry in layers]),
    ]
    yield Figure(
        "coverage", "Certificate against what was measured",
        "Expected share of expert weight outside the candidates, in percent. The promise holds for text like the "
        "calibration's; documents of the evaluate split were used for nothing else.",
        tuple(traces), axes("", "missed weight, %", barmode="group"),
    )  # fmt: skip


def _bar(name: str, x: Sequence[Any], y: Sequence[Any]) -> dict[str, Any]:
    return {"type": "bar", "name": name, "x": list(x), "y": list(y)}


def _latency(facts: Facts) -> Iterator[Figure]:
    for number, bench in enumerate(facts.benches):
        rows = [r for r in bench.get("rows", []) if {"path", "arm", "batch", "median_us"} <= set(r)]
        if not rows:
            continue
        arms: dict[str, dict[int, list[float]]] = {}
        for row in rows:
            arms.setdefault(str(row["arm"]), {}).setdefault(int(row["batch"]), []).append(
                float(row["median_us"])
            )
        traces = [
            _line(arm, sorted(times), [sum(times[b]) / len(times[b]) for b in sorted(times)])
            for arm, times in arms.items()
        ]
        machine = bench.get("machine", {})
        told = (
            ", ".join(f"{key} {value}" for key, value in machine.items())
            if isinstance(machine, dict)
            else machine
        )
        yield Figure(
            f"latency{number}", "Latency",
            f"Hidden state to experts, mean over layers of the median call. Measured on: {told or 'not stated'}.",
            tuple(traces), axes("tokens a call", "microseconds a call", x_log=True, y_log=True),
        )  # fmt: skip


def _crossover(facts: Facts) -> Iterator[Figure]:
    """Benches that vary the number of experts."""
    for number, bench in enumerate(facts.benches):
        rows = [r for r in bench.get("rows", []) if {"arm", "experts", "median_us"} <= set(r)]
        if len({row["experts"] for row in rows}) < 2:
            continue
        arms: dict[str, list[tuple[int, float]]] = {}
        for row in rows:
            label = f"{row['arm']}, {row['batch']} tokens" if "batch" in row else str(row["arm"])
            arms.setdefault(label, []).append((int(row["experts"]), float(row["median_us"])))
        traces = [_line(arm, *zip(*sorted(pairs), strict=True)) for arm, pairs in arms.items()]
        yield Figure(
            f"crossover{number}", "Crossover against the number of experts",
            "Where a geometric line passes below the gate's, geometry wins; left of that the dense gate does.",
            tuple(traces), axes("experts", "microseconds a call", x_log=True, y_log=True),
        )  # fmt: skip


def _experts(facts: Facts) -> Iterator[Figure]:
    layers = facts.experts.get("layers", [])
    if not layers:
        return
    names = [short_path(layer["path"]) for layer in layers]
    traces = [
        _interval_bar(label, names, [layer[key] for layer in layers])
        for key, label in (("class", "syntactic class"), ("topic", "topic"))
        if all(layer[key] for layer in layers)
    ]
    if traces:
        yield Figure(
            "information", "What the choice of expert depends on",
            "Bits of the expert choice that a label explains, corrected for bias, 95 % intervals; layers are never pooled.",
            tuple(traces), axes("", "bits a choice", barmode="group"),
        )  # fmt: skip
    heat = {
        "type": "heatmap", "z": [sorted(layer["usage"], reverse=True) for layer in layers], "y": names,
        "colorscale": "Viridis", "colorbar": {"title": {"text": "share"}},
    }  # fmt: skip
    yield Figure(
        "usage", "Load of the experts",
        "Share of all choices, experts of each layer sorted by their own load; expert numbers of different layers "
        "have nothing to do with each other.",
        (heat,), axes("experts of the layer, busiest first", "", reverse=True),
    )  # fmt: skip


def _interval_bar(name: str, x: list[str], values: list[dict[str, Any]]) -> dict[str, Any]:
    above = [value["ci95"][1] - value["bits"] for value in values]
    below = [value["bits"] - value["ci95"][0] for value in values]
    error = {"type": "data", "symmetric": False, "array": above, "arrayminus": below}
    return _bar(name, x, [value["bits"] for value in values]) | {"error_y": error}


def _polysemy(facts: Facts) -> Iterator[Figure]:
    rows = facts.polysemy.get("layers", [])
    if not rows:
        return
    traces = []
    for router in dict.fromkeys(row["router"] for row in rows):
        own = [row for row in rows if row["router"] == router]
        traces.append(_line(router, [short_path(row["path"]) for row in own], [row["auc"] for row in own]))
    yield Figure(
        "polysemy", "Senses of a word told apart by its routing",
        "Chance that two uses of a word in different senses are routed farther apart than two in the same; 0.5 is chance.",
        tuple(traces), axes("", "AUC"),
    )  # fmt: skip
