"""A Markdown page and plots from the record of `bench_route`."""

from __future__ import annotations

import json
from collections.abc import Callable
from operator import itemgetter
from pathlib import Path
from typing import Any

Cell = dict[str, Any]
Point = tuple[int, float]


def write_page(record: str | Path, folder: str | Path) -> Path:
    """Writes `route.md`, and with matplotlib its plots, into a folder; returns the page.

    Args:
        record: the JSON file of `bench_route`.
        folder: made when it is not there.
    """
    data = json.loads(Path(record).read_text(encoding="utf-8"))
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    plots = _plots(data["cells"], target)
    lines = ["# Routing on a GPU, hidden state to ids and weights", "", *_facts(data), ""]
    lines += [f"![{name}]({name})" for name in plots] + [
        "",
        "## Fastest at no less than 0.9 of the best recall",
        "",
    ]
    lines += [f"- {place}: {name}" for place, name in crossover(data["cells"]).items()]
    lines += ["", "## All figures: median (p90)", "", *_table(data)]
    page = target / "route.md"
    page.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return page


def _facts(data: dict[str, Any]) -> list[str]:
    machine = data["machine"]
    best = machine["ceilings"]
    return [
        f"{machine['gpu']}, torch {machine['torch']}, D = {data['hidden']}, K = {data['top_k']}, bf16, planted gates.",
        f"Measured ceilings: copy {best['copy_bytes_per_s'] / 1e12:.2f} TB/s, bf16 product "
        f"{best['bf16_flop_per_s'] / 1e12:.0f} TFLOP/s, one small kernel in a graph {best['launch_s'] * 1e6:.1f} us.",
        _rays(machine.get("rtcore_version")),
        data.get("protocol", ""),
        *(f"{name}: {found}." for name, found in machine.get("peers", {}).items()),
    ]


def _rays(version: int | None) -> str:
    if version is None:
        return "OptiX was not run."
    told = "no ray-tracing cores, so OptiX traverses in software" if version == 0 else "ray-tracing cores"
    return f"RTCORE_VERSION {version}: {told}. OptiX cannot be captured into a graph: eager figures only."


def floor_us(data: dict[str, Any], experts: int, batch: int) -> float:
    """What no exact gate can beat here: bytes at copy speed or operations at matrix speed, and one launch."""
    best, hidden = data["machine"]["ceilings"], data["hidden"]
    moved = 2 * hidden * (experts + batch) / best["copy_bytes_per_s"]
    worked = 2 * hidden * experts * batch / best["bf16_flop_per_s"]
    return float((max(moved, worked) + best["launch_s"]) * 1e6)


def _table(data: dict[str, Any]) -> list[str]:
    lines = [
        "| E | B | L | arm | graph us | cold us | eager us | exact floor us | recall@8 | mass |",
        "|--:|--:|--:|---|--:|--:|--:|--:|--:|--:|",
    ]
    for cell in data["cells"]:
        floor = floor_us(data, cell["experts"], cell["batch"])
        for name, arm in cell["arms"].items():
            shown = [_micro(arm[kind]) for kind in ("graph", "cold", "eager")]
            lines.append(
                f"| {cell['experts']} | {cell['batch']} | {cell['levels']} | {name} | {' | '.join(shown)} "
                f"| {floor:.1f} | {arm['recall']:.3f} | {arm['mass']:.3f} |"
            )
    return lines


def _micro(spread: dict[str, float] | None) -> str:
    return "" if spread is None else f"{spread['median_us']:.1f} ({spread['p90_us']:.1f})"


def _plots(cells: list[Cell], folder: Path) -> list[str]:
    try:
        from matplotlib import pyplot
    except ImportError:
        return []
    pyplot.switch_backend("agg")
    drawn = []
    views: tuple[tuple[str, str, str, int], ...] = (
        ("latency_by_experts.svg", "experts", "batch", 1024),
        ("latency_by_batch.svg", "batch", "experts", 4096),
        ("latency_by_batch_e64.svg", "batch", "experts", 64),
    )
    for name, axis, fixed, value in views:
        figure, axes = pyplot.subplots(figsize=(8, 5))
        chosen = [cell for cell in cells if cell[fixed] == value and cell["levels"] == 1]
        for arm, points in _series(chosen, itemgetter(axis)).items():
            axes.loglog(*zip(*sorted(points), strict=True), marker="o", label=arm)
        axes.set(xlabel=axis, ylabel="us a call (CUDA graph, warm)", title=f"{fixed} = {value}")
        axes.legend(fontsize=7)
        figure.savefig(folder / name, metadata={"Date": None})
        pyplot.close(figure)
        drawn.append(name)
    return drawn


def _series(cells: list[Cell], place: Callable[[Cell], int]) -> dict[str, list[Point]]:
    series: dict[str, list[Point]] = {}
    for cell in cells:
        for name, arm in cell["arms"].items():
            spread = arm["graph"] or arm["eager"]
            series.setdefault(name, []).append((place(cell), spread["median_us"]))
    return series


def crossover(cells: list[Cell]) -> dict[str, str]:
    """The fastest arm of every (E, B) with recall of at least 0.9 of the best arm's, one level."""
    best = {}
    for cell in cells:
        if cell["levels"] != 1:
            continue
        arms = {name: arm for name, arm in cell["arms"].items() if arm["graph"]}
        reached = max(arm["recall"] for arm in arms.values())
        able = {
            name: arm["graph"]["median_us"] for name, arm in arms.items() if arm["recall"] >= 0.9 * reached
        }
        best[f"E={cell['experts']} B={cell['batch']}"] = min(able, key=lambda name: able[name])
    return best
