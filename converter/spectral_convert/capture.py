"""Capture: runs the model over calibration text and records what every router sees."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from spectral_convert.captured import SAMPLE, LayerCapture, Moments
from spectral_convert.forward import Batch, batches, watch_routers
from spectral_convert.stream import stream_of
from spectral_convert.stream.spill import spill
from spectral_convert.text import TextSet
from spectral_runtime.attaching.discovery import RouterSite

SHOWN = 8
"""Experts named in one warning."""
logger = logging.getLogger(__name__)


def capture_routing(
    model: Any, sites: Sequence[RouterSite], splits: dict[str, TextSet], *, sample: bool = False
) -> tuple[LayerCapture, ...]:
    """Moments over the fit split and router inputs of the certify split, for every router; both in one pass.

    With `sample`, router inputs of up to `SAMPLE` tokens of the fit split too.

    Raises:
        ModelError: when a hidden state is not finite, or a router was bypassed.
    """
    moments = [Moments.zero(site.weight.shape[1], site.weight.shape[0]) for site in sites]
    weights = [_float_gate(site) for site in sites]
    stored: list[list[torch.Tensor]] = [[] for _ in sites]
    samples: list[list[torch.Tensor]] = [[] for _ in sites]
    step = max(1, math.ceil(splits["fit"].split.tokens / SAMPLE))
    keep = _keeper(model)
    fit, certify = (list(batches(splits[name].windows)) for name in ("fit", "certify"))
    fitted = {id(batch) for batch in fit}
    running: list[Batch] = fit[:1]

    def record(layer: int, hidden: torch.Tensor, route: Any) -> None:
        if id(running[0]) in fitted:
            if sample:
                first = -moments[layer].tokens % step
                samples[layer].append(keep(hidden[first::step].bfloat16().cpu()))
            _accumulate(moments[layer], hidden.float(), route[1], *weights[layer])
        else:
            stored[layer].append(keep(hidden.cpu()))

    def start(batch: Batch) -> None:
        running[:] = [batch]

    windows = (*splits["fit"].windows, *splits["certify"].windows)
    for _ in watch_routers(model, sites, windows, "capture", record, todo=[*fit, *certify], before=start):
        pass
    kept = [
        [keep(_joined(parts, site)) for parts, site in zip(s, sites, strict=True)] for s in (stored, samples)
    ]
    return tuple(LayerCapture(*parts) for parts in zip(sites, moments, *kept, strict=True))


def _joined(parts: list[torch.Tensor], site: RouterSite) -> torch.Tensor:
    """All parts as one; they are let go."""
    whole = torch.cat(parts) if parts else torch.zeros(0, site.weight.shape[1], dtype=torch.bfloat16)
    parts.clear()
    return whole


def _keeper(model: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    """How router inputs are kept: in memory, or in files when the model's stream spills."""
    stream = stream_of(model)
    if stream is None or not stream.spilling:
        return lambda tensor: tensor
    return lambda tensor: spill(tensor, stream.folder)


def _float_gate(site: RouterSite) -> tuple[torch.Tensor, torch.Tensor | None]:
    return site.weight.detach().float(), None if site.bias is None else site.bias.detach().float()


def _accumulate(
    moments: Moments, hidden: torch.Tensor, ids: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> None:
    logits = torch.nn.functional.linear(hidden, weight, bias).double()
    moments.tokens += len(hidden)
    moments.hidden += hidden.double().sum(dim=0).cpu().numpy()
    moments.logits += logits.sum(dim=0).cpu().numpy()
    moments.products += (logits.T @ logits).cpu().numpy()
    moments.chosen += torch.bincount(ids.reshape(-1), minlength=len(moments.chosen)).cpu().numpy()


def warn_rare(captures: Sequence[LayerCapture], alpha: float) -> list[tuple[str, int, int]]:
    """Warns of experts that the calibration chose fewer times than a certificate at `alpha` needs, layer by layer.

    Returns:
        (router path, expert, times chosen) of each.
    """
    needed = math.ceil(1.0 / alpha) - 1
    rare = []
    for capture in captures:
        chosen, path = capture.moments.chosen, capture.site.path
        few = [(path, int(expert), int(chosen[expert])) for expert in np.flatnonzero(chosen < needed)]
        if few:
            listed = ", ".join(f"expert {expert} {count}x" for _, expert, count in few[:SHOWN])
            more = f" and {len(few) - SHOWN} more" if len(few) > SHOWN else ""
            logger.warning(
                "%s: %d of %d experts were chosen fewer than the %d times that alpha %g needs: %s%s; give more "
                "or broader calibration text",
                path, len(few), len(chosen), needed, alpha, listed, more,
            )  # fmt: skip
        rare += few
    return rare
