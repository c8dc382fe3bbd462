"""The room: spheres, boxes and token points of every layer, packed for the page."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from spectral_convert.forward import watch_routers
from spectral_convert.report.cards import analysed_cards, counted_cards
from spectral_convert.sources import read_documents
from spectral_convert.text import Window, tokenise, windows_of
from spectral_runtime.attaching.attachment import plan_layers
from spectral_runtime.attaching.layer import AttachedLayer
from spectral_runtime.attaching.load import load_base_of
from spectral_runtime.attaching.selection import choice_scores, expert_scores
from spectral_runtime.bundle import Bundle, LayerTensors
from spectral_runtime.errors import TextError
from spectral_runtime.geometry import Bvh, sphere_radii

POINTS = 600
"""Tokens drawn in a layer."""
COUNTED = 12_000
"""Tokens that the cards are counted over."""
WINDOW = 256


@dataclass(frozen=True, slots=True)
class RoomText:
    """The tokens of the room, with their domains."""

    windows: tuple[Window, ...]
    tokens: NDArray[np.int64]
    """[T]."""
    domains: NDArray[np.int64]
    """[T]."""
    names: list[str]
    words: Any
    """Token id to text."""


@dataclass(slots=True)
class Seen:
    """What one layer's router was given and chose, [T] rows in window order."""

    hidden: list[torch.Tensor]
    ids: list[torch.Tensor]


def pack(array: NDArray[Any], kind: str) -> str:
    """Base64 of an array's bytes as little-endian `kind`."""
    return base64.b64encode(np.ascontiguousarray(array, dtype=kind).tobytes()).decode("ascii")


def build_room(
    bundle: Bundle, text: str | Path | None, base: str | None, experts: dict[str, Any]
) -> dict[str, Any]:
    """Everything the page draws in three dimensions; without a text there are no points.

    Raises:
        UserError: an unreadable text, or a base model that is not the bundle's.
    """
    room: dict[str, Any] = {"layers": [_layer(layer, experts) for layer in bundle.layers]}
    if text is None:
        return room
    model, tokenizer = load_base_of(bundle, base, dtype="float32")
    content = read_room_text(tokenizer, text)
    plans = plan_layers(model, bundle)
    seen = _watch(model, plans, content.windows)
    shown = np.unique(np.linspace(0, len(content.tokens) - 1, POINTS).astype(np.int64))
    room["tokens"] = [content.words(int(i)) for i in content.tokens[shown]]
    room["domains"] = content.names
    room["domain"] = pack(content.domains[shown], "<u1")
    for packed, plan, layer, states in zip(room["layers"], plans, bundle.layers, seen, strict=True):
        packed.update(_points(plan, layer, states, shown))
        if not packed["cards"]:
            ids = torch.cat(states.ids).numpy()
            packed["cards"] = counted_cards(
                ids, content.tokens, content.domains, content.names, content.words
            )
    return room


def read_room_text(tokenizer: Any, source: str | Path) -> RoomText:
    """Up to `COUNTED` tokens, the same number from every file; a file is a domain.

    Raises:
        TextError: no tokens.
    """
    path = Path(source)
    files = sorted(path.rglob("*.txt")) if path.is_dir() else [path]
    windows: list[Window] = []
    domains: list[int] = []
    for number, file in enumerate(files):
        left = COUNTED // len(files)
        for document in read_documents(file):
            ids = tokenise(tokenizer, document, min(left, 2 * WINDOW))
            windows += (pieces := list(windows_of(ids, number, WINDOW)))
            left -= len(ids)
            domains += [number] * sum(len(window.ids) for window in pieces)
            if left < 2:
                break
    if not windows:
        raise TextError(str(source), expected="a document of two tokens or more", found="none")
    tokens = np.array([token for window in windows for token in window.ids], np.int64)

    def words(token: int) -> str:
        return str(tokenizer.decode([token]))

    return RoomText(tuple(windows), tokens, np.array(domains), [file.stem for file in files], words)


def _watch(model: Any, plans: Sequence[AttachedLayer], windows: Sequence[Window]) -> list[Seen]:
    """Windows of one length come in order; others are put back into it."""
    seen = [Seen([], []) for _ in plans]

    def record(layer: int, hidden: torch.Tensor, route: Any) -> None:
        seen[layer].hidden.append(hidden.float())
        seen[layer].ids.append(route[1])

    order: list[int] = []
    for batch, _ in watch_routers(model, [plan.site for plan in plans], windows, "room", record):
        order += batch.numbers
    sizes = [len(windows[number].ids) for number in order]
    rank = np.argsort(order)
    for layer in seen:
        hidden, ids = torch.split(torch.cat(layer.hidden), sizes), torch.split(torch.cat(layer.ids), sizes)
        layer.hidden, layer.ids = [hidden[i] for i in rank], [ids[i] for i in rank]
    return seen


def _layer(layer: LayerTensors, experts: dict[str, Any]) -> dict[str, Any]:
    entry = layer.entry
    packed: dict[str, Any] = {
        "path": entry.path, "mode": entry.mode, "experts": entry.rule.experts, "top_k": entry.rule.top_k,
        "candidates": entry.candidates, "levels": 0, "cards": analysed_cards(experts, entry.path),
    }  # fmt: skip
    if layer.geometry is None or layer.bvh is None:
        return packed
    geometry, points = layer.geometry, 3 * layer.geometry.levels
    return packed | {
        "levels": geometry.levels,
        "centres": pack(geometry.centres, "<f4"),
        "radii": pack(sphere_radii(geometry), "<f4"),
        "lower": pack(layer.bvh.lower[:, :points], "<f4"),
        "upper": pack(layer.bvh.upper[:, :points], "<f4"),
        "depth": pack(node_depths(layer.bvh), "<u1"),
        "leaf": pack(layer.bvh.count > 0, "<u1"),
    }


def node_depths(bvh: Bvh) -> NDArray[np.int64]:
    """Depth [N] of every node; a child's index is larger than its parent's, so one pass is enough."""
    depth = np.zeros(bvh.nodes, np.int64)
    for node in np.flatnonzero(bvh.count == 0):
        child = int(bvh.first[node])
        depth[child : child + 2] = depth[node] + 1
    return depth


def _points(
    plan: AttachedLayer, layer: LayerTensors, states: Seen, shown: NDArray[np.int64]
) -> dict[str, Any]:
    """Positions [L, T, 3] of the shown tokens, their chosen experts, and and those experts' ranks."""
    hidden, ids = torch.cat(states.hidden)[shown], torch.cat(states.ids)[shown]
    wide = "<u1" if plan.rule.experts <= 256 else "<u2"
    packed: dict[str, Any] = {"wide": wide, "ids": pack(ids.numpy(), wide)}
    if layer.geometry is None or plan.scorer is None:
        return packed
    geometry = layer.geometry
    flat = (hidden.numpy() - geometry.mean) @ geometry.projection[: 3 * geometry.levels].T
    positions = flat.reshape(len(shown), geometry.levels, 3).transpose(1, 0, 2)
    return packed | {"points": pack(positions, "<f4"), "ranks": pack(_ranks(plan, hidden, ids), wide)}


def _ranks(plan: AttachedLayer, hidden: torch.Tensor, ids: torch.Tensor) -> NDArray[np.int64]:
    """[T, K], where the gate's experts stand in the order by which candidates are drawn; 0 is first."""
    assert plan.scorer is not None
    with torch.inference_mode():
        scores = plan.scorer.scores(hidden)
        if plan.mode != "geometric":
            scores = scores + plan.scorer.spread
        choice = choice_scores(expert_scores(plan.rule, scores), plan.site.choice_bias)
        places = choice.argsort(dim=1, descending=True, stable=True).argsort(dim=1, stable=True)
        return np.asarray(places.gather(1, ids).numpy())
