"""Manufactures small bundles: any rule, any mode, a median-split tree, random or arithmetic numbers."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Any, Protocol

import numpy as np

from spectral_runtime.bundle import (
    BaseModel,
    Certificate,
    LayerEntry,
    LayerTensors,
    Manifest,
    Split,
    routers_digest,
)
from spectral_runtime.gate import GateRule
from spectral_runtime.geometry import Bvh, Geometry, widened

SIGMOID_GROUPS: dict[str, Any] = {
    "score": "sigmoid",
    "choice_bias": True,
    "groups": 2,
    "groups_kept": 1,
    "normalise": True,
    "scale": 2.5,
}


class Draws(Protocol):
    """What a bundle needs of a random generator."""

    def standard_normal(self, size: tuple[int, ...]) -> np.ndarray: ...


class Arithmetic:
    """Numbers that are exact in float32 and the same on every machine and in every numpy."""

    def __init__(self) -> None:
        self._next = 1

    def standard_normal(self, size: tuple[int, ...]) -> np.ndarray:
        steps = np.arange(self._next, self._next + int(np.prod(size)))
        self._next += len(steps)
        return ((steps * 37 % 101 - 50) / 32).reshape(size)


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def make_geometry(
    rng: Draws, experts: int, hidden: int, levels: int = 1, colour: int = 0, centred: bool = True
) -> Geometry:
    def draw(*shape: int) -> np.ndarray:
        return np.asarray(rng.standard_normal(shape), dtype=np.float32)

    return Geometry(
        mean=draw(hidden),
        projection=draw(3 * levels + colour, hidden),
        centres=draw(levels, experts, 3),
        colour=draw(experts, colour),
        beta=draw(experts),
        residual=np.abs(draw(experts)),
        spread=np.abs(draw(experts)),
        common=draw(hidden) if centred else None,
    )


def median_tree(geometry: Geometry, choice_bias: np.ndarray | None = None, leaf: int = 2) -> Bvh:
    """A BVH halving the experts along the widest axis of level 1: plain, independent of the builder."""
    experts = geometry.experts
    points = geometry.centres.transpose(1, 0, 2).reshape(experts, -1)
    values = np.concatenate([points, geometry.colour], axis=1)
    groups, first, count = [np.arange(experts)], [0], [0]
    order: list[int] = []
    for node in range(2 * experts):  # the lists grow while nodes are split
        if node == len(groups):
            break
        members = groups[node]
        if len(members) <= leaf:
            first[node], count[node] = len(order), len(members)
            order += [int(e) for e in members]
        else:
            axis = int(np.argmax(np.ptp(values[members, :3], axis=0)))
            halves = np.array_split(members[np.argsort(values[members, axis], kind="stable")], 2)
            first[node] = len(groups)
            groups += halves
            first += [0, 0]
            count += [0, 0]
    return bounded_tree(geometry, choice_bias, groups, (first, count, order))


def bounded_tree(
    geometry: Geometry,
    choice_bias: np.ndarray | None,
    groups: list[np.ndarray],
    tree: tuple[list[int], list[int], list[int]],
) -> Bvh:
    points = geometry.centres.transpose(1, 0, 2).reshape(geometry.experts, -1)
    values = np.concatenate([points, geometry.colour], axis=1)
    power = np.square(geometry.centres.astype(np.float64)).sum(axis=-1).T
    beta = widened(geometry).beta
    power[:, 0] += beta
    bias = np.zeros(geometry.experts, np.float32) if choice_bias is None else choice_bias

    def per_node(reduce: Any, array: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray([reduce(array[members], axis=0) for members in groups], dtype=np.float32)

    first, count, order = (np.asarray(part, dtype=np.int32) for part in tree)
    return Bvh(
        lower=per_node(np.min, values),
        upper=per_node(np.max, values),
        power=np.nextafter(per_node(np.max, power), np.float32(np.inf)),
        beta=per_node(np.max, beta),
        choice_bias=per_node(np.max, bias),
        first=first,
        count=count,
        experts=order,
    )


def make_layer(
    rng: Draws,
    *,
    path: str = "model.layers.0.mlp.gate",
    experts: int = 8,
    hidden: int = 12,
    levels: int = 2,
    colour: int = 3,
    mode: Any = "prefilter",
    candidates: int | None = None,
    top_k: int = 2,
    rule: dict[str, Any] | None = None,
    gate_rows: bool = False,
    certificate: Certificate | None = None,
) -> LayerTensors:
    """One consistent layer; `levels` and `colour` are ignored in the mode `dense`."""
    gate = GateRule(experts=experts, top_k=top_k, **(rule or {}))
    dense = mode == "dense"
    geometry = None if dense else make_geometry(rng, experts, hidden, levels, colour)
    bias = np.asarray(rng.standard_normal((experts,)), np.float32) if gate.choice_bias and not dense else None
    bvh = None if geometry is None else median_tree(geometry, bias)
    wanted = min(2 * top_k, experts) if candidates is None else candidates
    entry = LayerEntry(
        path=path,
        hidden=hidden,
        rule=gate,
        mode=mode,
        router_sha256=digest(path),
        levels=0 if dense else levels,
        colour=0 if dense else colour,
        candidates=wanted if mode == "prefilter" else 0,
        nodes=0 if bvh is None else bvh.nodes,
        centred=not dense,
        gate_rows=gate_rows,
        gate_bias=gate_rows,
        certificate=certificate,
    )
    weight = np.asarray(rng.standard_normal((experts, hidden)), np.float32) if gate_rows else None
    row_bias = np.asarray(rng.standard_normal((experts,)), np.float32) if gate_rows else None
    return LayerTensors(
        entry=entry, geometry=geometry, bvh=bvh, choice_bias=bias, gate_weight=weight, gate_bias=row_bias
    )


def make_manifest(layers: tuple[LayerTensors, ...], **changes: Any) -> Manifest:
    entries = tuple(layer.entry for layer in layers)
    base = BaseModel(id="pico/moe", revision=None, model_type="olmoe", routers_sha256=routers_digest(entries))
    splits = {
        name: Split(documents=3, tokens=100, sha256=digest(name)) for name in ("fit", "certify", "evaluate")
    }
    manifest = Manifest(
        format_version=1, base_model=base, layers=entries, splits=splits, tools={"spectral": "0.1.0"}
    )
    return dataclasses.replace(manifest, **changes)


def make_bundle(rng: Draws, *, layers: int = 1, **options: Any) -> tuple[Manifest, tuple[LayerTensors, ...]]:
    """Manifest and layers for `write_bundle`; the options are those of `make_layer`."""
    made = tuple(
        make_layer(rng, **{"path": f"model.layers.{index}.mlp.gate", **options}) for index in range(layers)
    )
    return make_manifest(made), made


def golden_bundle() -> tuple[Manifest, tuple[LayerTensors, ...]]:
    """The bundle of tests/bundles/golden: every kind of tensor, every mode but `exact`, a few kB."""
    numbers = Arithmetic()
    certificate = Certificate(
        alpha=0.05,
        candidates=4,
        risk=0.01,
        bound=0.02,
        tokens=99,
        documents=3,
        split_sha256=digest("certify"),
    )
    layers = (
        make_layer(numbers, path="model.layers.0.mlp.gate", hidden=6, certificate=certificate),
        make_layer(
            numbers,
            path="model.layers.1.mlp.gate",
            hidden=6,
            levels=1,
            colour=0,
            mode="geometric",
            rule=SIGMOID_GROUPS,
            gate_rows=True,
        ),
        make_layer(numbers, path="model.layers.2.mlp.gate", hidden=6, mode="dense"),
    )
    return make_manifest(layers, recipe={"levels": 2, "text": "calibration – 3 documents"}), layers


GOLDEN_EVIDENCE: dict[str, object] = {"fit": [{"path": "model.layers.0.mlp.gate", "recall": [0.5, 1.0]}]}
GOLDEN_CARD = "# pico\n\nA bundle made by arithmetic, for tests.\n"
