"""AdamW over float32 masters of parameters in any dtype, its rate warmed up and brought down by a cosine."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

BETAS = (0.9, 0.98)
LEAST = 0.01
"""Share of the peak rate at the end."""


def rate_at(fraction: float, step: int, rise: int) -> float:
    """Share of the peak learning rate at this step, when this fraction of the budget is spent; up to `rise` it rises."""
    falling = LEAST + (1.0 - LEAST) * 0.5 * (1.0 + math.cos(math.pi * min(fraction, 1.0)))
    return falling * min((step + 1) / (rise + 1), 1.0)


class Optimiser:
    """Steps masters and copies them into the parameters the forward uses.

    A geometry's masters are its arrays over their root mean square at the start: Adam's step does not see the scale of a
    gradient, so that one rate moves every array by the same share of itself.

    Args:
        geometry: float32 parameters.
        weights: parameters in the forward's dtype.
        lr: peak rate of the geometry, relative.
        weights_lr: peak rate of the weights.
        clip: largest norm of the weights' gradients together, and of the geometry's.
    """

    def __init__(
        self,
        geometry: Sequence[nn.Parameter],
        weights: Sequence[nn.Parameter],
        *,
        lr: float,
        weights_lr: float,
        clip: float,
    ) -> None:
        self.parameters, self.split, self.clip = [*geometry, *weights], len(geometry), clip
        sizes = [max(float(p.detach().float().square().mean().sqrt()), 1e-8) for p in geometry]
        self.scales = [*sizes, *([1.0] * len(weights))]
        self.masters = [
            p.detach().float().clone() / s for p, s in zip(self.parameters, self.scales, strict=True)
        ]
        self.gradients = [torch.zeros_like(master) for master in self.masters]
        sorts = [(self.masters[: self.split], lr), (self.masters[self.split :], weights_lr)]
        groups: list[dict[str, Any]] = [{"params": some, "peak": peak} for some, peak in sorts if some]
        on_gpu = self.masters[0].is_cuda
        for group in groups:  # a rate on the device can change in a recorded step
            group["lr"] = torch.zeros((), device=self.masters[0].device) if on_gpu else 0.0
        self.adam = torch.optim.AdamW(groups, betas=BETAS, weight_decay=0.0, fused=on_gpu, capturable=on_gpu)
        for master, gradient in zip(self.masters, self.gradients, strict=True):
            master.grad = gradient

    def step(self, rate: torch.Tensor) -> None:
        """One update at this share, a scalar, of the peak rates; gradients are taken from the parameters and dropped."""
        self._collect()
        for group in self.adam.param_groups:
            torch.nn.utils.clip_grad_norm_(group["params"], self.clip)
            if isinstance(group["lr"], torch.Tensor):
                group["lr"].copy_(rate * group["peak"])
            else:
                group["lr"] = float(rate) * group["peak"]
        self.adam.step()
        self._publish()

    def _collect(self) -> None:
        """The parameters' gradients in float32, a few launches for all of them."""
        found = [p.grad for p in self.parameters]
        for gradient, absent in zip(self.gradients, found, strict=True):
            if absent is None:
                gradient.zero_()
        pairs = [(g, f) for g, f in zip(self.gradients, found, strict=True) if f is not None]
        torch._foreach_copy_([g for g, _ in pairs], [f for _, f in pairs])
        torch._foreach_mul_(self.gradients[: self.split], self.scales[: self.split])
        for parameter in self.parameters:
            parameter.grad = None

    def _publish(self) -> None:
        with torch.no_grad():
            values = torch._foreach_mul(self.masters[: self.split], self.scales[: self.split])
            torch._foreach_copy_([p.data for p in self.parameters], [*values, *self.masters[self.split :]])

    def snapshot(self) -> list[torch.Tensor]:
        """The masters as they are, on the CPU."""
        return [master.detach().to("cpu", copy=True) for master in self.masters]

    def adopt(self, values: Sequence[torch.Tensor]) -> None:
        """Puts masters and parameters to these values."""
        with torch.no_grad():
            for master, value in zip(self.masters, values, strict=True):
                master.copy_(value)
        self._publish()

    def state(self) -> dict[str, torch.Tensor]:
        """Masters and moments by name, for a checkpoint."""
        tensors = {f"master.{i}": tensor for i, tensor in enumerate(self.snapshot())}
        for i, master in enumerate(self.masters):
            for name, value in self.adam.state.get(master, {}).items():
                tensors[f"{name}.{i}"] = value.detach().to("cpu", copy=True)
        return tensors

    def restore(self, tensors: dict[str, torch.Tensor]) -> None:
        """Continues from what `state` gave."""
        self.adopt([tensors[f"master.{i}"] for i in range(len(self.masters))])
        for i, master in enumerate(self.masters):
            found = {name: tensors[f"{name}.{i}"] for name in ("step", "exp_avg", "exp_avg_sq")}
            # AdamW's fused form keeps its step counter on the device of the parameters.
            self.adam.state[master] = {
                name: value.to(master.device) if name != "step" or master.is_cuda else value
                for name, value in found.items()
            }
