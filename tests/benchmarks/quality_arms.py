"""The arms that colour and nested levels are measured against: plain residuals, codes of the context, local levels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from spectral_convert.captured import LayerCapture
from spectral_convert.fit.layer import fit_layer, gate_moments
from spectral_convert.forward import Batch, batches, watch_routers
from spectral_convert.text import TextSet
from spectral_runtime.attaching.scorer import Scorer
from spectral_runtime.gate import GateRule
from spectral_runtime.geometry import Geometry, directions, left_out

CONTEXT_LENGTH = 1024
"""Tokens of every held-out window: the context scorer must know where windows begin."""
RIDGE = 1e-3


@dataclass(slots=True)
class ContextScorer:
    """A scorer whose colour is a code of the mean of the window's earlier tokens."""

    scorer: Scorer
    context_mean: torch.Tensor
    """[D]."""
    code: torch.Tensor
    """[S, D]."""
    experts: torch.Tensor
    """[E, S]."""

    @classmethod
    def of(
        cls, geometry: Geometry, mean: torch.Tensor, code: torch.Tensor, experts: torch.Tensor
    ) -> ContextScorer:
        return cls(Scorer.of(geometry, mean.device), mean, code, experts)

    @property
    def spread(self) -> torch.Tensor:
        return self.scorer.spread

    def to(self, device: torch.device) -> ContextScorer:
        return self

    def scores(self, hidden: torch.Tensor) -> torch.Tensor:
        """Float32 [T, E] of whole windows [T, D] one after the other."""
        windows = hidden.float().reshape(-1, CONTEXT_LENGTH, hidden.shape[-1])
        context = earlier_mean(windows, self.context_mean).reshape(hidden.shape)
        return self.scorer.scores(hidden) + (context - self.context_mean) @ self.code.T @ self.experts.T


def earlier_mean(windows: torch.Tensor, first: torch.Tensor) -> torch.Tensor:
    """[B, N, D], the mean of the tokens before each; `first` [D] where there is none (a causal average)."""
    counts = torch.arange(1, windows.shape[1], device=windows.device, dtype=windows.dtype)
    before = windows.cumsum(dim=1)[:, :-1] / counts[None, :, None]
    return torch.cat([first.expand(len(windows), 1, -1), before], dim=1)


class Arms:
    """What the arms need of the fit split beyond moments: the sums of context against logits."""

    def __init__(
        self,
        model: Any,
        sites: Sequence[Any],
        captures: Sequence[LayerCapture],
        rules: Sequence[GateRule],
        text: TextSet,
    ) -> None:
        self.captures, self.rules = captures, rules
        self.means = [_tensor(c.moments.hidden / c.moments.tokens, c) for c in captures]
        self.squares = [mean.new_zeros(len(mean), len(mean)) for mean in self.means]
        self.cross = [mean.new_zeros(len(mean), len(mean)) for mean in self.means]
        running: list[Batch] = []

        def record(layer: int, hidden: torch.Tensor, _: Any) -> None:
            self._add(layer, hidden, running[0].keep.sum(dim=1).tolist())

        def start(batch: Batch) -> None:
            running[:] = [batch]

        todo = list(batches(text.windows, 32768))
        for _ in watch_routers(model, sites, text.windows, "context", record, todo=todo, before=start):
            pass

    def _add(self, layer: int, hidden: torch.Tensor, lengths: list[int]) -> None:
        mean = self.means[layer]
        for window in torch.split(hidden, lengths):
            moved = window.double() - mean
            context = earlier_mean(window.double()[None], mean)[0] - mean
            self.squares[layer] += context.T @ context
            self.cross[layer] += context.T @ moved

    def plain(self, size: int) -> list[Geometry]:
        """Four levels and the truncated SVD of the gate rows they leave out, blind to the data."""
        found = []
        for capture, rule in zip(self.captures, self.rules, strict=True):
            base = fit_layer(capture, rule, levels=4, colour=0).geometry
            left = _left_out(capture, base)
            u, s, v = np.linalg.svd(left, full_matrices=False)
            found.append(_coloured(capture, base, v[:size], u[:, :size] * s[:size]))
        return found

    def context(self, size: int) -> Iterator[tuple[Geometry, torch.Tensor, torch.Tensor, torch.Tensor]]:
        """Four levels and a code of the context: reduced-rank regression of the logits they leave out on it."""
        for number, (capture, rule) in enumerate(zip(self.captures, self.rules, strict=True)):
            base = fit_layer(capture, rule, levels=4, colour=0).geometry
            left = _tensor(_left_out(capture, base), capture)
            squares = self.squares[number] + RIDGE * self.squares[number].diagonal().mean() * torch.eye(
                len(left.T), dtype=torch.float64, device=left.device
            )
            slopes = torch.linalg.solve(squares, self.cross[number] @ left.T)  # [D, E]
            _, vectors = torch.linalg.eigh(slopes.T @ squares @ slopes)
            experts = vectors.flip(1)[:, :size]
            code = (slopes @ experts).T
            yield base, self.means[number].float(), code.float(), experts.float()


def _tensor(values: Any, capture: LayerCapture) -> torch.Tensor:
    return torch.as_tensor(values, dtype=torch.float64, device=capture.site.weight.device)


def _left_out(capture: LayerCapture, geometry: Geometry) -> np.ndarray:
    """[E, D], the gate rows less their approximation."""
    weight = capture.site.weight.detach().double().cpu().numpy()
    return left_out(weight, directions(geometry), geometry.projection, geometry.common)


def _coloured(capture: LayerCapture, base: Geometry, rows: np.ndarray, codes: np.ndarray) -> Geometry:
    """`base` with these colour rows [S, D] and codes [E, S], and the spread that is then left on the sample."""
    coloured = replace(
        base,
        projection=np.concatenate([base.projection, rows]).astype(np.float32),
        colour=np.ascontiguousarray(codes, dtype=np.float32),
    )
    left = torch.as_tensor(
        _left_out(capture, coloured), dtype=torch.float32, device=capture.site.weight.device
    )
    hidden = capture.sample[::4].to(left.device).float()
    spread = ((hidden - torch.as_tensor(base.mean, device=left.device)) @ left.T).std(dim=0)
    return replace(coloured, spread=spread.cpu().numpy())


def local_levels(capture: LayerCapture, rule: GateRule, levels: int, clusters: int) -> tuple[Geometry, int]:
    """One shared level, and further ones of a projection for each cluster of experts; and the rows projected in all.

    Clusters are k-means over the experts' level-1 centres. Written as a flat geometry whose codes are zero outside the
    expert's own cluster: same scores, and each expert still has rank 3 L.
    """
    base = fit_layer(capture, rule, levels=1, colour=0).geometry
    groups = _k_means(base.centres[0], clusters)
    moments = gate_moments(capture)
    weight, left = moments.weight, _left_out(capture, base)
    # Covariance of the left-out logits: left = M weight for a known M, as the closed form is linear in the rows.
    mixing = np.linalg.lstsq(weight.T, left.T, rcond=None)[0].T
    covariance = mixing @ moments.covariance @ mixing.T
    rows, codes = [], []
    for group in range(clusters):
        members = np.flatnonzero(groups == group)
        values, vectors = np.linalg.eigh(covariance[np.ix_(members, members)])
        kept = vectors[:, ::-1][:, : 3 * (levels - 1)]
        del values
        rows.append(kept.T @ left[members])
        code = np.zeros((rule.experts, kept.shape[1]))
        code[members] = kept
        codes.append(code)
    flat = np.concatenate(rows)
    return _coloured(capture, base, flat, np.concatenate(codes, axis=1)), 3 + len(flat)


def _k_means(points: np.ndarray, clusters: int) -> np.ndarray:
    from scipy.cluster.vq import kmeans2

    return np.asarray(kmeans2(points.astype(np.float64), clusters, seed=0, minit="++")[1])
