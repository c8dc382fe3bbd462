"""Keeps the student's hidden states near the original's after every decoder layer (hints of Romero et al. 2015)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from spectral_convert.heal.mixed import mixed
from spectral_convert.stream.model import decoder_layers


class _Kept:
    """Mixed in front of a decoder layer's class; keeps the hidden states of the last forward."""

    spectral_states: torch.Tensor

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = super().forward(*args, **kwargs)  # type: ignore[misc]
        self.spectral_states = output[0] if isinstance(output, tuple) else output
        return output


class Follower:
    """Pairs the decoder layers of two models of one architecture.

    Args:
        teacher: the untouched model.
        student: the one in training; its routers may be of other classes.
        fused: compile the distance.
    """

    def __init__(self, teacher: Any, student: Any, *, fused: bool = False) -> None:
        self.distance = torch.compile(distance) if fused else distance
        path, own = decoder_layers(teacher)  # the student's routers are no longer those that are looked for
        self.pairs: list[tuple[Any, Any]] = list(zip(own, student.get_submodule(path), strict=True))

    @property
    def layers(self) -> list[Any]:
        """The decoder layers of both models."""
        return [layer for pair in self.pairs for layer in pair]

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Keeps the states of every forward inside."""
        try:
            with mixed(self.layers, _Kept):
                yield
        finally:
            for layer in self.layers:
                layer.__dict__.pop("spectral_states", None)

    def apart(self) -> torch.Tensor:
        """Mean over layers of |student - original|^2 / |original|^2 of the hidden states [T, D] of the last forwards."""
        terms = [
            self.distance(twin.spectral_states, own.spectral_states.detach()) for own, twin in self.pairs
        ]
        return torch.stack(terms).mean()


def distance(found: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """|found - wanted|^2 / |wanted|^2 of hidden states of any dtype, in float32."""
    found, wanted = found.float(), wanted.float()
    return (found - wanted).square().sum() / wanted.square().sum().clamp(min=1e-20)


@contextmanager
def compiled(layers: list[Any]) -> Iterator[None]:
    """Compiles every layer by itself, one graph for all that are alike; undone at the end."""
    for layer in layers:
        layer.compile(dynamic=False)
    try:
        yield
    finally:
        for layer in layers:
            layer._compiled_call_impl = None
