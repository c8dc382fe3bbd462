"""Text that the original model writes itself: endless windows of its own distribution (LLM-QAT, Liu et al. 2023)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from spectral_convert.heal.windows import FitText

ROWS = {"cpu": 16, "cuda": 2048}
"""Texts written at one time; the cache of keys and values grows with them."""
PROMPT = 8
"""Tokens of real text that every text begins with."""
USES = 4
"""Times a window is trained on: writing a token costs about as much as a step on it."""


class SampledText:
    """Rounds of windows, each a pure function of seed and number on a CPU.

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
        rows = ROWS.get(text.tokens.device.type, ROWS["cpu"])
        self.batches = max(1, rows // (batch * self.pieces))
        self._round, self._windows = -1, torch.empty(0)

    def take(self, number: int) -> torch.Tensor:
        """Batch `number`, int64 [batch, N]: every round is gone through USES times, each time in another order."""
        wanted, place = divmod(number, self.batches * USES)
        if wanted != self._round:
            self._windows, self._round = self._write(wanted), wanted
        use, place = divmod(place, self.batches)
        order = np.random.default_rng([self.seed, 2, wanted, use]).permutation(len(self._windows))
        rows = torch.from_numpy(order[place * self.batch : (place + 1) * self.batch])
        return self._windows[rows.to(self._windows.device, non_blocking=True)]

    def _write(self, number: int) -> torch.Tensor:
        device, count = self.text.tokens.device, self.batches * self.batch * self.pieces
        generator = torch.Generator(device).manual_seed(self.seed * 1_000_003 + number)
        prompt = self.text.draw(min(PROMPT, self.length - 1), count, (self.seed, 1, number))
        return write_on(self.teacher, prompt, self.length, generator).view(-1, self.window)


@torch.no_grad()
def write_on(model: Any, prompt: torch.Tensor, length: int, generator: torch.Generator) -> torch.Tensor:
    """Continues prompts int64 [B, P] to int64 [B, N] by drawing from the model's own distribution."""
    pieces, cache, last = [prompt], None, prompt
    for _ in tqdm(range(length - prompt.shape[1]), desc="original writes", disable=None, leave=False):
        output = model(input_ids=last, past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache = output.past_key_values
        shares = output.logits[:, -1].float().softmax(dim=-1)
        # The largest share over an exponential variate is a draw from the distribution, without a synchronisation.
        noise = torch.empty_like(shares).exponential_(generator=generator)
        last = (shares / noise).argmax(dim=-1, keepdim=True)
        pieces.append(last)
    return torch.cat(pieces, dim=1)
