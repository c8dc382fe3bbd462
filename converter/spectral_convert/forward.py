"""Runs a causal language model over token windows in deterministic batches, and measures its token losses."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional
from tqdm import tqdm

from spectral_convert.stream import stream_of
from spectral_convert.text import Window
from spectral_runtime.attaching.discovery import RouterSite
from spectral_runtime.errors import ModelError

BATCH_TOKENS = {"cpu": 4096, "cuda": 32768}
"""Tokens in a forward pass by device: what fills it without holding much."""
LOSS_CHUNK = 1024
"""Rows of logits turned into losses at a time: bounds the float32 copy of a large vocabulary."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Windows padded on the right to one length."""

    numbers: tuple[int, ...]
    """Positions in the window list."""
    ids: torch.Tensor
    """int64 [B, N]."""
    keep: torch.Tensor
    """bool [B, N], False on padding."""


def batches(windows: Sequence[Window], batch_tokens: int = BATCH_TOKENS["cpu"]) -> Iterator[Batch]:
    """Batches of windows of like length, longest first."""
    order = sorted(range(len(windows)), key=lambda i: (-len(windows[i].ids), i))
    while order:
        width = len(windows[order[0]].ids)
        take, order = order[: max(1, batch_tokens // width)], order[max(1, batch_tokens // width) :]
        ids = torch.zeros((len(take), width), dtype=torch.long)
        keep = torch.zeros((len(take), width), dtype=torch.bool)
        for row, number in enumerate(take):
            tokens = windows[number].ids
            ids[row, : len(tokens)] = torch.tensor(tokens)
            keep[row, : len(tokens)] = True
        yield Batch(tuple(take), ids, keep)


def batch_tokens(model: Any) -> int:
    """Tokens in a forward pass on the model's device."""
    return BATCH_TOKENS.get(next(model.parameters()).device.type, BATCH_TOKENS["cpu"])


def run_batches(
    model: Any,
    windows: Sequence[Window],
    label: str,
    before: Callable[[Batch], None] | None = None,
    todo: Sequence[Batch] | None = None,
) -> Iterator[tuple[Batch, torch.Tensor]]:
    """Forwards every batch without gradients; yields it with its logits [B, N, V]. Progress counts tokens."""
    todo = list(batches(windows, batch_tokens(model))) if todo is None else todo
    total = sum(int(batch.keep.sum()) for batch in todo)
    with tqdm(total=total, desc=label, unit="tok", disable=None, leave=False) as bar, torch.inference_mode():
        for batch, logits in _forwards(model, todo, before or (lambda _: None)):
            yield batch, logits
            bar.update(int(batch.keep.sum()))


def _forwards(
    model: Any, todo: Sequence[Batch], before: Callable[[Batch], None]
) -> Iterator[tuple[Batch, torch.Tensor]]:
    """One batch after the other, or, for a streamed model, layer by layer; `before` is told whenever a batch goes on."""
    stream = stream_of(model)
    if stream is None:
        device = next(model.parameters()).device
        for batch in todo:
            before(batch)
            yield batch, model(input_ids=batch.ids.to(device), use_cache=False).logits
        return
    jobs = [partial(_forward, model, batch, stream.device) for batch in todo]
    results = stream.run(jobs, lambda number: before(todo[number]))
    yield from zip(todo, results, strict=True)


def _forward(model: Any, batch: Batch, device: str) -> torch.Tensor:
    with torch.inference_mode():  # the mode belongs to the thread
        logits: torch.Tensor = model(input_ids=batch.ids.to(device), use_cache=False).logits
    return logits


Record = Callable[[int, torch.Tensor, Any], None]
"""Receives layer number, hidden [T, D] and the router's (weights, ids) [T, K], padding removed."""


def watch_routers(
    model: Any,
    sites: Sequence[RouterSite],
    windows: Sequence[Window],
    label: str,
    record: Record,
    *,
    todo: Sequence[Batch] | None = None,
    before: Callable[[Batch], None] | None = None,
) -> Iterator[tuple[Batch, torch.Tensor]]:
    """`run_batches`, with `record(layer, hidden [T, D], (weights, ids) [T, K])` for every router call.

    Raises:
        ModelError: when a hidden state is not finite, or a router was bypassed.
    """
    watch = _Watch(record, [0] * len(sites), before or (lambda _: None))
    handles = [site.module.register_forward_hook(watch.hook(i, site)) for i, site in enumerate(sites)]
    count = 0
    try:
        for result in run_batches(model, windows, label, watch.start, todo):
            count += 1
            yield result
    finally:
        for handle in handles:
            handle.remove()
    for site, calls in zip(sites, watch.calls, strict=True):
        if calls != count:
            remedy = "load the model without fused or quantised MoE kernels"
            raise ModelError(
                site.path, expected=f"{count} calls of the router", found=str(calls), remedy=remedy
            )


@dataclass(slots=True)
class _Watch:
    """What the hooks need to know of the batch that is running."""

    record: Record
    calls: list[int]
    before: Callable[[Batch], None]
    keep: torch.Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.bool))

    def start(self, batch: Batch) -> None:
        self.keep = batch.keep.reshape(-1)
        self.before(batch)

    def hook(self, layer: int, site: RouterSite) -> Callable[..., None]:
        def observe(_: Any, args: Any, output: Any) -> None:
            keep = self.keep.to(args[0].device)
            hidden = site.gate_input(args[0])[keep]
            if not torch.isfinite(hidden).all():
                remedy = "the checkpoint or the dtype overflows: try --dtype float32"
                raise ModelError(
                    site.path, expected="finite hidden states", found="NaN or infinity", remedy=remedy
                )
            self.calls[layer] += 1
            weights, ids = site.route_of(output)
            self.record(layer, hidden, (weights[keep], ids[keep]))

        return observe


def token_losses(batch: Batch, logits: torch.Tensor) -> list[NDArray[np.float64]]:
    """Negative log-likelihood in nats of every token but the first, one array a window; float32 inside."""
    losses = []
    for row in range(len(batch.numbers)):
        length = int(batch.keep[row].sum())
        targets = batch.ids[row, 1:length].to(logits.device)
        scores = logits[row, : length - 1]
        parts = [
            functional.cross_entropy(
                scores[i : i + LOSS_CHUNK].float(), targets[i : i + LOSS_CHUNK], reduction="none"
            )
            for i in range(0, length - 1, LOSS_CHUNK)
        ]
        losses.append(torch.cat(parts).cpu().numpy().astype(np.float64))
    return losses
