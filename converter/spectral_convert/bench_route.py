"""Bench-route: the routing matrix on a GPU, hidden state to ids and weights, every peer in one interleaved run."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from spectral_convert import route_arms
from spectral_convert.device_timing import BUFFERS, Arm, ceilings, measure
from spectral_convert.route_arms import HIDDEN, Planted, Route, hidden_states, plant
from spectral_runtime import cuda, optix
from spectral_runtime.errors import BackendUnavailable

EXPERTS = (64, 128, 256, 384, 512, 896, 4096, 65_536, 1_048_576)
BATCHES = (1, 8, 32, 256, 1024, 4096, 65_536)
LEVELS = (1, 4)
OPTIX, KD_TREE = "ours: OptiX spheres", "cupy kd-tree"
EAGER_ONLY = (OPTIX, KD_TREE)
"""Arms that a CUDA graph cannot hold."""
COMPILED = ((64, 1), (64, 1024), (512, 1024), (4096, 1024))
"""(E, B) at which the transformers gate is also timed under torch.compile: seconds of compilation each."""
LARGEST_LOGITS = 1 << 30
"""Elements of a [T, E] matrix that the dense arms may make."""


def bench_route(
    out: str | Path | None = None,
    *,
    experts: Sequence[int] = EXPERTS,
    batches: Sequence[int] = BATCHES,
    levels: Sequence[int] = LEVELS,
    repeats: int = 50,
    budget: float = 0.25,
    compiled: bool = False,
    peers: str | None = None,
) -> dict[str, Any]:
    """Times every arm at every size and writes the record.

    Args:
        out: JSON file; None writes nothing.
        experts: E axis.
        batches: B axis, tokens per call.
        levels: L axis of the geometric arms; peers run once, with the first.
        repeats: samples of each kind and arm.
        budget: seconds an arm may take for each kind of sample; slow arms get fewer.
        compiled: also the transformers gate under torch.compile, default mode, at the sizes in COMPILED.
        peers: folder with operator libraries of other projects to time as well.

    Raises:
        BackendUnavailable: without a GPU.
    """
    reason = cuda.unavailable()
    if reason is not None:
        raise BackendUnavailable("bench-route", found=reason, remedy="run it on a machine with an NVIDIA GPU")
    route_arms.load_peers(peers)
    record: dict[str, Any] = {"machine": machine(), "hidden": HIDDEN, "top_k": route_arms.TOP_K, "cells": []}
    for count in experts:
        for level in levels:
            planted = plant(count, level)
            for batch in batches:
                record["cells"].append(
                    _cell(planted, batch, repeats, budget, peers=level == levels[0], compiled=compiled)
                )
                if out is not None:
                    Path(out).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
            del planted
            torch.cuda.empty_cache()
    return record


def machine() -> dict[str, Any]:
    """What the figures were measured on, and what it does at best."""
    facts = torch.cuda.get_device_properties(0)
    return {
        "gpu": facts.name,
        "multiprocessors": facts.multi_processor_count,
        "capability": f"{facts.major}.{facts.minor}",
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "rtcore_version": _rtcore_version(),
        "ceilings": ceilings(),
        "peers": {
            name: route_arms.peer_found(name) for name in ("vllm", "flashinfer", "sglang", "sgl_kernel")
        },
    }


def _rtcore_version() -> int | None:
    """OptiX's RTCORE_VERSION: 0 where rays are traversed in software; None without OptiX."""
    if optix.unavailable() is not None:
        return None
    version: int = route_arms.optix_router(plant(64, 1)).facts["rtcore_version"]
    return version


@torch.inference_mode()
def _cell(
    planted: Planted, batch: int, repeats: int, budget: float, *, peers: bool, compiled: bool
) -> dict[str, Any]:
    inputs = [hidden_states(planted, batch, seed) for seed in range(BUFFERS)]
    routes = dict(_routes(planted, batch, peers=peers, compiled=compiled))
    truth = _truth(planted, inputs[0])
    arms = {
        name: Arm(_call(route, inputs), capturable=name not in EAGER_ONLY) for name, route in routes.items()
    }
    recalls = {name: _recall(planted, truth, inputs[0], route) for name, route in routes.items()}
    rows = {}
    for name, kinds in measure(arms, repeats=repeats, budget=budget).items():
        spreads = {
            k: None if s is None else {"median_us": s.median, "p90_us": s.p90} for k, s in kinds.items()
        }
        rows[name] = {**spreads, **recalls[name]}
    return {"experts": planted.experts, "batch": batch, "levels": planted.levels, "arms": rows}


def _call(route: Route, inputs: list[torch.Tensor]) -> Any:
    return lambda number: route(inputs[number])


def _routes(planted: Planted, batch: int, *, peers: bool, compiled: bool) -> Iterator[tuple[str, Route]]:
    dense = planted.experts * batch <= LARGEST_LOGITS
    if planted.experts <= cuda.MAX_ROW:
        yield "ours: geometric rows", route_arms.geometric(planted, "rows")
    if planted.experts * batch <= 1 << 32:
        yield "ours: geometric scan", route_arms.geometric(planted, "scan")
    if planted.experts >= 512:
        yield "ours: geometric tree", route_arms.geometric(planted, "search")
    if optix.unavailable() is None:
        yield OPTIX, route_arms.optix_spheres(planted)
    if not peers:
        return
    if planted.experts <= cuda.MAX_ROW:
        yield "ours: exact gate", route_arms.exact_gate(planted, batch)
        yield "cuBLAS + Triton top-k", route_arms.matrix_and_fused_topk(planted)
        peer = route_arms.peer_topk(planted)
        if peer is not None:
            yield "cuBLAS + SGLang top-k", peer
    if dense:
        yield "transformers", route_arms.transformers_gate(planted)
        yield "cuBLAS + torch.topk", route_arms.matrix_and_topk(planted)
        yield "rank 32", route_arms.low_rank(planted)
    if compiled and (planted.experts, batch) in COMPILED:
        yield "transformers, compiled", torch.compile(route_arms.transformers_gate(planted), dynamic=False)
    yield "product keys", route_arms.product_keys(planted)
    tree = route_arms.cupy_tree(planted) if planted.experts >= 4096 else None
    if tree is not None:
        yield KD_TREE, tree


def _truth(planted: Planted, x: torch.Tensor) -> torch.Tensor:
    """Ids [min(T, 256), K] by float32 logits of the bf16 gate."""
    return (x[:256].float() @ planted.weight.float().T).topk(planted.rule.top_k, dim=1)[1]


def _recall(planted: Planted, truth: torch.Tensor, x: torch.Tensor, route: Route) -> dict[str, float]:
    """Share of the gate's experts found, and of their softmax mass that what was found has."""
    ids = route(x)[0][: len(truth)].long()
    hits = (truth.unsqueeze(2) == ids.unsqueeze(1)).any(dim=2).float().mean()
    logits = [
        torch.bmm(planted.weight[chosen].float(), x[: len(truth)].float().unsqueeze(2)).squeeze(2)
        for chosen in (truth, ids)
    ]
    mass = torch.exp(logits[1].logsumexp(1) - logits[0].logsumexp(1)).mean()
    return {"recall": round(float(hits), 4), "mass": round(float(mass), 4)}
