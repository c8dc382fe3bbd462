"""Draws the figures of the mathematics page from the demo's own bundle: `python docs/figures/draw.py BUNDLE`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import matplotlib as mpl
import numpy as np

mpl.use("svg")
mpl.rcParams |= {"svg.hashsalt": "spectral", "svg.fonttype": "none", "font.size": 9, "axes.spines.top": False,
                 "axes.spines.right": False, "figure.facecolor": "white"}  # fmt: skip
from matplotlib import pyplot as plt  # noqa: E402

HERE = Path(__file__).parent


def save(figure: plt.Figure, name: str) -> None:
    """Writes one SVG, the same bytes each time."""
    figure.savefig(HERE / f"{name}.svg", metadata={"Date": None}, bbox_inches="tight")
    plt.close(figure)


def draw_power() -> None:
    """In two dimensions: circles, their power cells, and the same cells from the linear score."""
    rng = np.random.default_rng(3)
    centres, beta = rng.uniform(-1.5, 1.5, (7, 2)), rng.normal(0, 0.6, 7)
    centres -= centres.mean(axis=0)
    squared = (centres**2).sum(axis=1) + beta
    radii = np.sqrt(squared - squared.min())
    x, y = np.meshgrid(np.linspace(-2.2, 2.2, 300), np.linspace(-1.9, 1.9, 260))
    points = np.stack([x, y], axis=-1)
    linear = 2 * points @ centres.T + beta
    power = radii**2 - ((points[..., None, :] - centres) ** 2).sum(axis=-1)
    assert (linear.argmax(axis=-1) == power.argmax(axis=-1)).all()
    figure, axes = plt.subplots(figsize=(5.2, 4.2))
    axes.contour(x, y, power.argmax(axis=-1), levels=np.arange(7) + 0.5, colors="0.65", linewidths=0.8)
    for number, (centre, radius) in enumerate(zip(centres, radii, strict=True)):
        colour = f"C{number}"
        axes.add_patch(plt.Circle(tuple(centre), radius, fill=True, alpha=0.15, color=colour))
        axes.plot(*centre, "o", color=colour, markersize=4)
    axes.set(xlim=(-2.2, 2.2), ylim=(-1.9, 1.9), aspect="equal", xticks=[], yticks=[])
    axes.axis("off")
    axes.set_title(
        "grey: where the best expert changes, by depth in the circles and by score alike", fontsize=8
    )
    save(figure, "power")


def draw_rank(fit: list[dict]) -> None:
    """Explained variance by rank."""
    figure, axes = plt.subplots(figsize=(5.2, 3.0))
    for layer in fit:
        ranks = 3 * np.arange(1, len(layer["explained"]) + 1)
        axes.plot(
            ranks, 100 * np.array(layer["explained"]), "o-", markersize=3, label=layer["path"].split(".")[2]
        )
    axes.set(xlabel="rank R = 3L", ylabel="logit variance explained, %", xticks=ranks)
    axes.legend(title="layer", frameon=False)
    save(figure, "rank")


def draw_candidates(fit: list[dict], alpha: float) -> None:
    """Missed weight by number of candidates."""
    figure, axes = plt.subplots(figsize=(5.2, 3.0))
    for layer in fit:
        missed = np.array(layer["missed_mass_at_candidates"][1:])
        axes.semilogy(
            np.arange(1, len(missed) + 1),
            np.where(missed > 0, missed, np.nan),
            label=layer["path"].split(".")[2],
        )
    axes.axhline(alpha, color="0.4", linestyle="--", linewidth=0.8)
    axes.text(len(missed), alpha * 1.15, "alpha", ha="right")
    axes.set(xlabel="candidates C", ylabel="missed weight")
    axes.legend(title="layer", frameon=False)
    save(figure, "candidates")


def main() -> None:
    """Draws all figures."""
    bundle = Path(sys.argv[1])
    folder = bundle / "spectral" if (bundle / "spectral").is_dir() else bundle
    fit = json.loads((folder / "evidence" / "fit.json").read_text(encoding="utf-8"))
    recipe = json.loads((folder / "spectral_config.json").read_text(encoding="utf-8"))["recipe"]
    draw_power()
    draw_rank(fit)
    draw_candidates(fit, recipe["alpha"])


if __name__ == "__main__":
    main()
