"""Bench: how long one layer's routing takes, from hidden states to experts and weights, gate against geometry."""

from __future__ import annotations

import itertools
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from spectral_convert.forward import watch_routers
from spectral_convert.text import whole_text
from spectral_runtime.attaching.attachment import plan_layers
from spectral_runtime.attaching.layer import AttachedLayer
from spectral_runtime.attaching.load import load_base_of
from spectral_runtime.bundle import load_bundle
from spectral_runtime.bundle.contents import LayerTensors
from spectral_runtime.bundle.manifest import Mode
from spectral_runtime.geometry import widened
from spectral_runtime.router import Router

WARM_UP = 3
Arm = Callable[[torch.Tensor], Any]


@dataclass(frozen=True, slots=True)
class Timing:
    """One arm at one batch size on one layer."""

    path: str
    arm: str
    batch: int
    median_us: float
    p90_us: float
    recall: float
    """Share of the gate's K experts among what the arm returns."""


def bench_bundle(
    bundle: str | Path,
    *,
    text: str | Path,
    base: str | None = None,
    mode: Mode | None = None,
    candidates: int | None = None,
    batches: Sequence[int] = (1, 32, 1024),
    repeats: int = 50,
    threads: int = 1,
) -> dict[str, Any]:
    """Times every converted layer on real hidden states of a text, arms interleaved; CPU, float32.

    Args:
        bundle: folder or hub id.
        text: UTF-8 file or folder.
        base: where the base model lies now.
        mode: overrides the layers' modes.
        candidates: overrides C.
        batches: tokens per call.
        repeats: timed calls per arm and batch size.
        threads: torch's and ours.
    """
    loaded = load_bundle(bundle)
    model, tokenizer = load_base_of(loaded, base, dtype="float32")
    layers = plan_layers(model, loaded, mode, candidates)
    hidden = _hidden_states(model, layers, whole_text(tokenizer, text, 512, max(batches)).windows)
    with _torch_threads(threads), torch.inference_mode():
        rows = [
            row
            for layer, tensors, states in zip(layers, loaded.layers, hidden, strict=True)
            for row in _time_layer(layer, _arms(layer, tensors, threads), states, batches, repeats)
        ]
    machine = {
        "processor": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "threads": threads,
    }
    keys = Timing.__slots__
    return {
        "machine": machine,
        "repeats": repeats,
        "rows": [{k: getattr(row, k) for k in keys} for row in rows],
    }


@contextmanager
def _torch_threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _hidden_states(model: Any, layers: Sequence[AttachedLayer], windows: Any) -> list[torch.Tensor]:
    stored: list[list[torch.Tensor]] = [[] for _ in layers]

    def store(layer: int, hidden: torch.Tensor, _: Any) -> None:
        stored[layer].append(hidden.clone())

    for _ in watch_routers(model, [layer.site for layer in layers], windows, "hidden states", store):
        pass
    return [torch.cat(parts) for parts in stored]


def _time_layer(
    layer: AttachedLayer, arms: dict[str, Arm], hidden: torch.Tensor, batches: Sequence[int], repeats: int
) -> list[Timing]:
    rows = []
    for batch in batches:
        inputs = hidden.repeat(-(-batch // len(hidden)), 1)[:batch].contiguous()
        truth = layer.site.module(inputs)[2]
        for name, micro in _interleaved(arms, inputs, repeats).items():
            recall = _recall(truth, arms[name](inputs))
            median, p90 = float(np.median(micro)), float(np.percentile(micro, 90))
            rows.append(Timing(layer.site.path, name, batch, median, p90, recall))
    return rows


def _interleaved(arms: dict[str, Arm], inputs: torch.Tensor, repeats: int) -> dict[str, NDArray[np.float64]]:
    """Microseconds of every call, the arms in turn so that a drift of the machine hits them alike."""
    times: dict[str, list[float]] = {name: [] for name in arms}
    for _, (name, arm) in itertools.product(range(repeats + WARM_UP), arms.items()):
        start = time.perf_counter()
        arm(inputs)
        times[name].append(time.perf_counter() - start)
    return {name: np.array(values[WARM_UP:]) * 1e6 for name, values in times.items()}


def _arms(layer: AttachedLayer, tensors: LayerTensors, threads: int) -> dict[str, Arm]:
    arms: dict[str, Arm] = {"gate": lambda x: layer.site.module(x)[2]}
    if layer.passes_through or tensors.geometry is None:
        return arms
    count = layer.candidates if layer.mode == "prefilter" else layer.rule.top_k
    geometry = widened(tensors.geometry) if layer.mode == "prefilter" else tensors.geometry
    router = Router(geometry, layer.rule, tensors.bvh, choice_bias=tensors.choice_bias, threads=threads)
    arms[f"{layer.mode} torch"] = lambda x: layer.route(x)[1]
    arms[f"candidates {router.backend}"] = lambda x: torch.from_numpy(router.candidates(x.numpy(), count)[0])
    return arms


def _recall(truth: torch.Tensor, found: torch.Tensor) -> float:
    return float((truth.unsqueeze(2) == found.unsqueeze(1)).any(dim=2).float().mean())
