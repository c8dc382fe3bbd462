"""Plain sentences drawn from an expert analysis, each with the numbers it rests on."""

from __future__ import annotations

from typing import Any

NAMES = {"class": "syntactic class", "topic": "topic", "selectivity": "selectivity of the gate"}
STABLE = 0.6
"""Adjusted Rand index above which clusters are said to come back."""
REAL = 0.15
"""Silhouette above which groups are said to exist."""


def conclusions(record: dict[str, Any], tagged: bool) -> list[str]:
    """One line a layer, then one a question; nothing is claimed that its interval or null does not carry."""
    layers = record["layers"]
    lines = [_layer_line(layer) for layer in layers]
    lines += [f"{item['path']}: left out, {item['reason']}" for item in record["refused"]]
    if layers:
        lines += [_load_line(layers), *_winner_lines(layers), _cluster_line(layers)]
        lines += [_depth_line(name, record["depth"][name]) for name in NAMES]
    if not tagged:
        lines.append("syntactic classes come from closed word lists, so all open-class words are one class")
    return lines


def _layer_line(layer: dict[str, Any]) -> str:
    parts = [
        f"{NAMES[name]} explains {_bits(layer[name])}"
        for name in ("class", "topic")
        if layer[name] is not None
    ]
    given = layer["topic_given_token"]
    if given is not None:
        parts.append(f"topic beyond the token itself {given['bits']:.3f} bits")
    return f"{layer['path']}: " + ", ".join(parts or ["one class and one topic, nothing to explain"])


def _bits(value: dict[str, Any]) -> str:
    low, high = value["ci95"]
    weak = "" if value["p_value"] < 0.05 else f", not beyond chance (p = {value['p_value']:.2f})"
    return f"{value['bits']:.3f} bits ({low:.3f} to {high:.3f}{weak})"


def _load_line(layers: list[dict[str, Any]]) -> str:
    shares = [layer["load"]["effective"] / layer["experts"] for layer in layers]
    unused = sum(layer["load"]["never_chosen"] for layer in layers)
    cold = f"; never chosen: {unused}" if unused else "; every expert is used"
    return f"load: {100 * min(shares):.0f} % to {100 * max(shares):.0f} % of the experts are effective{cold}"


def _winner_lines(layers: list[dict[str, Any]]) -> list[str]:
    """Which label explains more, counted only where the intervals do not overlap."""
    both = [layer for layer in layers if layer["class"] and layer["topic"]]
    if not both:
        return []
    syntax = sum(layer["class"]["ci95"][0] > layer["topic"]["ci95"][1] for layer in both)
    topic = sum(layer["topic"]["ci95"][0] > layer["class"]["ci95"][1] for layer in both)
    return [
        f"syntactic class explains more than topic in {syntax} of {len(both)} layers, topic more in {topic} "
        f"(intervals apart); more labels make more bits possible, so compare the shares too"
    ]


def _cluster_line(layers: list[dict[str, Any]]) -> str:
    found = [layer["clusters"] for layer in layers if layer["clusters"]]
    real = [c for c in found if c["silhouette"] >= REAL and c["stability"] >= STABLE]
    if not real:
        return "co-activation: no groups of experts that are both distinct and stable on halves of the text"
    counts = ", ".join(map(str, sorted({len(c["members"]) for c in real})))
    return f"co-activation: distinct, stable groups in {len(real)} of {len(layers)} layers ({counts} groups)"


def _depth_line(name: str, profile: dict[str, Any]) -> str:
    if profile["shape"] == "too few layers":
        return f"{NAMES[name]} over depth: too few layers, or nothing to measure"
    key = "slope" if profile["shape"] in ("rising", "falling") else "curvature"
    low, high = profile[f"{key}_ci95"]
    shape = {"U": "a U", "inverted U": "an inverted U", "neither": "no shape beyond noise"}
    told = shape.get(profile["shape"], profile["shape"])
    return f"{NAMES[name]} over depth: {told} ({key} {profile[key]:+.3f}, {low:+.3f} to {high:+.3f})"
