"""Text that the original model writes itself: endless windows of its own distribution (LLM-QAT, Liu et al. 2023)."""

from __future__ import annotations

import math
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm

from spectral_convert.heal.windows import FitText

ROWS = {"cpu": 16, "cuda": 8192}
"""Texts written at one time, at most: a token costs the less the more there are."""
CACHE_SHARE = 0.25
"""Share of a GPU's free memory that the cache of keys and values may take."""
BACKENDS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
"""Without cuDNN, which plans anew for every length of the cache: 75 ms a token were measured on an H100."""
PROMPT = 8
"""Tokens of real text that every text begins with."""
USES = 8
"""Times a window is trained on, in the mean: writing a token costs more than a step on it."""
KEPT = 32
"""Rounds that windows are drawn from: what is repeated at once is soon known by heart."""


class SampledText:
    """Rounds of windows, each a pure function of seed and number on a CPU; the newest are kept.

    Args:
        teacher: the untouched model.
        text: where the beginnings come from.
        length: of a written text; a window holds a whole number of them.
        window: N.
        batch: windows of one step.
        seed: of beginnings and draws.
    """

    def __init__(
        self, teacher: Any, text: FitText, *, length: int, window: int, batch: int, seed: int
    ) -> None:
        self.teacher, self.text, self.length, self.seed = teacher, text, length, seed
        self.window, self.batch, self.pieces = window, batch, window // length
        self._rounds: dict[int, torch.Tensor] = {}

    @cached_property
    def rows(self) -> int:
        """Texts written at one time."""
        return rows_that_fit(self.teacher, self.text.tokens, self.length)

    @property
    def batches(self) -> int:
        """Batches of a round."""
        return max(1, self.rows // (self.batch * self.pieces))

    def take(self, number: int) -> torch.Tensor:
        """Batch `number`, int64 [batch, N], of the rounds so far; the next is written when they were used USES times."""
        newest = number // (self.batches * USES)
        wanted = range(max(0, newest - KEPT + 1), newest + 1)
        self._rounds = {n: self._rounds[n] if n in self._rounds else self._write(n) for n in wanted}
        size = self.batches * self.batch
        drawn = np.random.default_rng([self.seed, 2, number]).choice(
            len(wanted) * size, self.batch, replace=False
        )
        rounds = [self._rounds[wanted[place // size]][place % size] for place in drawn.tolist()]
        return torch.stack(rounds).long()

    def _write(self, number: int) -> torch.Tensor:
        device, count = self.text.tokens.device, self.batches * self.batch * self.pieces
        generator = torch.Generator(device).manual_seed(self.seed * 1_000_003 + number)
        prompt = self.text.draw(min(PROMPT, self.length - 1), count, (self.seed, 1, number))
        parts = [
            write_on(self.teacher, part, self.length, generator) for part in torch.split(prompt, self.rows)
        ]
        return torch.cat(parts).view(-1, self.window).int()


def free_memory(device: torch.device) -> float:
    """Bytes; of a GPU, since text on a CPU is written a few rows at a time."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else math.inf


@torch.no_grad()
def rows_that_fit(model: Any, tokens: torch.Tensor, length: int) -> int:
    """Texts of `length` tokens to write at one time."""
    prompt = tokens[None, :PROMPT]
    cache = model(input_ids=prompt, use_cache=True, logits_to_keep=1).past_key_values
    held = [value for layer in getattr(cache, "layers", ()) for value in vars(layer).values()]
    size = sum(value.nbytes for value in held if isinstance(value, torch.Tensor)) / prompt.shape[1]
    free = free_memory(tokens.device) * CACHE_SHARE
    most = ROWS.get(tokens.device.type, ROWS["cpu"])
    return int(max(1, min(most, free / max(size * length, 1))))


def _update(layer: Any, keys: torch.Tensor, values: torch.Tensor, *_: Any, **__: Any) -> Any:
    """The `update` of a cache layer that has its whole room: an ordinary one copies all that it holds for every token."""
    start = layer.keys.shape[-2]
    end = start + keys.shape[-2]
    for room, fresh in zip(layer.spectral_room, (keys, values), strict=True):
        room[:, :, start:end] = fresh
    layer.keys, layer.values = (room[:, :, :end] for room in layer.spectral_room)
    return layer.keys, layer.values


def _make_room(cache: Any, length: int) -> None:
    """Gives the plain layers of a cache room for `length` tokens."""
    from transformers.cache_utils import DynamicLayer

    kind: Any = type("RoomyLayer", (DynamicLayer,), {"update": _update})
    for layer in getattr(cache, "layers", ()):  # some architectures bring a cache of their own
        if type(layer) is DynamicLayer:
            held = (layer.keys, layer.values)
            layer.__class__ = kind
            layer.spectral_room = [t.new_empty(*t.shape[:-2], length, t.shape[-1]) for t in held]
            layer.keys, layer.values = (t[:, :, :0] for t in held)
            layer.update(*held)


@torch.no_grad()
def write_on(model: Any, prompt: torch.Tensor, length: int, generator: torch.Generator) -> torch.Tensor:
    """Continues prompts int64 [B, P] to int64 [B, N] by drawing from the model's own distribution."""
    pieces, cache, last = [prompt], None, prompt
    with sdpa_kernel(BACKENDS):
        for _ in tqdm(range(length - prompt.shape[1]), desc="original writes", disable=None, leave=False):
            output = model(input_ids=last, past_key_values=cache, use_cache=True, logits_to_keep=1)
            if cache is None:
                _make_room(output.past_key_values, length)
            cache = output.past_key_values
            shares = output.logits[:, -1].float().softmax(dim=-1)
            # The largest share over an exponential variate is a draw from the distribution, without a synchronisation.
            noise = torch.empty_like(shares).exponential_(generator=generator)
            last = (shares / noise).argmax(dim=-1, keepdim=True)
            pieces.append(last)
    return torch.cat(pieces, dim=1)
