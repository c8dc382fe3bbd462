"""One update of the student, and on a GPU its recording: launching it piece by piece takes longer than running it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from spectral_convert.heal.balance import LoadKeeper
from spectral_convert.heal.follow import Follower
from spectral_convert.heal.loss import Distillation
from spectral_convert.heal.optimise import Optimiser
from spectral_convert.heal.settings import HealSettings

WARM = 4
"""Updates before the recording: compilation, plans of libraries and the optimiser's moments come with the first."""


class Update:
    """Loss, gradients and a step of the optimiser.

    Args:
        loss: of windows.
        keeper: watches the routers.
        follower: watches the layers.
        optimiser: of the student.
        settings: the weights of the terms.
    """

    def __init__(
        self,
        loss: Distillation,
        keeper: LoadKeeper,
        follower: Follower,
        optimiser: Optimiser,
        settings: HealSettings,
    ) -> None:
        self.loss, self.keeper, self.follower = loss, keeper, follower
        self.optimiser, self.settings = optimiser, settings

    def __call__(self, ids: torch.Tensor, rate: torch.Tensor) -> torch.Tensor:
        """The loss, a scalar, of windows int64 [B, N] before a step at `rate`, a scalar, of the peak rates."""
        settings, keeper = self.settings, self.keeper
        loss, parts = self.loss(ids)
        whole = loss + settings.balance_weight * keeper.excess() + keeper.missed()
        # These two fade with the rate: they show the way at first, and at the end only the text counts.
        if settings.router_weight:
            whole = whole + settings.router_weight * rate * keeper.unlike()
        if settings.states_weight:
            whole = whole + settings.states_weight * rate * self.follower.apart()
        whole.backward()  # type: ignore[no-untyped-call]
        self.optimiser.step(rate)
        return parts[0] + settings.lm_weight * parts[1]


class Recorded:
    """An update as a CUDA graph: made after a few calls, then replayed for windows of the same shape."""

    def __init__(self, update: Update) -> None:
        self.update, self.calls = update, 0
        self.graph: torch.cuda.CUDAGraph | None = None
        self.given: tuple[torch.Tensor, torch.Tensor]
        self.found: torch.Tensor

    def __call__(self, ids: torch.Tensor, rate: torch.Tensor) -> torch.Tensor:
        """As `Update`; the result is the caller's."""
        self.calls += 1
        if self.calls <= WARM:
            return self.update(ids, rate)
        if self.graph is None:
            self._record(ids, rate)
        assert self.graph is not None
        for place, value in zip(self.given, (ids, rate), strict=True):
            place.copy_(value)
        self.graph.replay()
        return self.found.clone()

    def _record(self, ids: torch.Tensor, rate: torch.Tensor) -> None:
        self.given = ids.clone(), rate.clone()
        graph: Any = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
            self.found = self.update(*self.given)
        self.graph = graph


@contextmanager
def aside(device: torch.device) -> Iterator[None]:
    """On a stream of its own: gradients are bound to the stream of their first use, and the default one records nothing."""
    here, stream = torch.cuda.current_stream(device), torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    stream.wait_stream(here)
    with torch.cuda.stream(stream):
        yield
    here.wait_stream(stream)
