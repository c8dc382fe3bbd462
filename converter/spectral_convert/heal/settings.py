"""The settings of a healing, once: flags and keywords are made from these fields."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal

from spectral_convert.recipe import setting
from spectral_runtime.errors import ConfigError

Scope = Literal["geometry", "geometry+norms", "all"]
DEVICE_TOKENS = {"cpu": 2048, "cuda": 16384}
"""Tokens of one step by device."""
LENGTH, SAMPLED_LENGTH = 1024, 512
"""Tokens of a window and of a sampled text, unless told."""
RISE = 50
"""Steps until Adam's second moments (beta 0.98) have seen their span (Ma and Yarats 2019)."""
WEIGHTS_LR = {"cpu": 5e-4, "cuda": 1e-3}
"""Peak rate of the weights by device."""
HELD_BACK = {"cpu": 8192, "cuda": 65536}
"""Tokens held back by device."""
SAMPLED = {"geometry": 0.0, "geometry+norms": 0.0, "all": 0.5}
"""Share of steps on text that the original wrote: a geometry has too few numbers to learn a text by heart."""

RESOLVED = {
    "batch_tokens": "step_tokens", "sampled": "sampled_share", "sequence_length": "window", "warmup": "rise",
    "validation_tokens": "held_back", "sampled_length": "written_length", "compiled": "compiles",
    "recorded": "records", "dtype": "forward_dtype", "weights_lr": "weights_rate",
}  # fmt: skip
"""Settings whose defaults depend on others, and the properties that know them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HealSettings:
    """All settings of one healing."""

    scope: Literal["geometry", "geometry+norms", "all"] = setting(
        "geometry", "what is trained: the routers, also the norms, or all"
    )
    minutes: float | None = setting(None, "budget in minutes, sampling and checks included")
    steps: int | None = setting(None, "budget in optimizer steps, instead of minutes")
    mode: Literal["geometric", "prefilter"] | None = setting(
        None, "mode healed for, in every layer that has a geometry; default: each layer's own"
    )
    calibration: str | None = setting(None, "text to heal on; default: the recipe's")
    lr: float = setting(3e-2, "peak learning rate of the geometry, relative to each array's magnitude")
    weights_lr: float | None = setting(
        None,
        "peak learning rate of norms and weights; default 5e-4 on CPU, 1e-3 on CUDA, whose steps are larger",
    )
    warmup: int | None = setting(
        None, "steps over which the rate rises; default 50, or a tenth of --steps where that is less"
    )
    clip: float = setting(1.0, "largest norm of the gradient")
    lm_weight: float = setting(0.0, "weight of the language-model loss beside the divergence")
    balance_weight: float = setting(0.01, "weight of the term that keeps the original's expert load")
    router_weight: float = setting(
        3.0, "weight of the divergence between the two models' scores of experts; fades with the rate"
    )
    states_weight: float = setting(
        5.0, "weight of the distance between the two models' hidden states after each layer; fades too"
    )
    batch_tokens: int | None = setting(None, "tokens a step; default 2048 on CPU, 16384 on CUDA")
    sequence_length: int | None = setting(
        None, "tokens of a training window; default 1024, or the model's limit where that is less"
    )
    sampled: float | None = setting(
        None, "share of steps on text the original model writes; default 0.5 in scope all, else 0"
    )
    sampled_length: int | None = setting(
        None, "tokens of such a text, of which windows are joined; default at most 512"
    )
    validation_tokens: int | None = setting(
        None,
        "tokens of the fit documents held back to choose the best state; default 8192 on CPU, 65536 on CUDA",
    )
    checks: int = setting(20, "validations over the budget")
    checkpoint_seconds: float = setting(60.0, "time between checkpoints, which happen at validations")
    divergence: float = setting(3.0, "stop when the loss exceeds its best by this factor")
    compiled: bool | None = setting(
        None, "compile the decoder layers with torch.compile; default on CUDA for budgets from two minutes"
    )
    recorded: bool | None = setting(
        None, "replay a step as a CUDA graph; default with compiled layers, where attention needs no mask"
    )
    device: str = setting("cpu", "torch device")
    dtype: Literal["auto", "float32", "bfloat16"] = setting(
        "auto", "dtype of the forward passes; auto is float32 on CPU, else the checkpoint's"
    )
    seed: int = setting(0, "seed of windows and sampled text")

    def __post_init__(self) -> None:
        self._check_budget()
        for name in ("lr", "clip", "divergence"):
            _refuse(name, getattr(self, name) > 0, "more than 0", getattr(self, name))
        rate = self.weights_lr
        _refuse("weights_lr", rate is None or rate > 0, "more than 0", rate)
        for name in ("lm_weight", "balance_weight", "router_weight", "states_weight", "checkpoint_seconds"):
            _refuse(name, getattr(self, name) >= 0, "at least 0", getattr(self, name))
        for name in ("sequence_length", "sampled_length"):
            length = getattr(self, name)
            _refuse(name, length is None or length >= 4, "at least 4 tokens", length)
        whole = self.window % self.written_length == 0
        _refuse("sampled_length", whole, f"a divisor of {self.window}, the window", self.sampled_length)
        for name in ("checks", "held_back"):
            _refuse(name, getattr(self, name) >= 1, "at least 1", getattr(self, name))
        _refuse("warmup", self.warmup is None or self.warmup >= 0, "at least 0 steps", self.warmup)
        _refuse("sampled", 0 <= self.sampled_share <= 1, "a share from 0 to 1", self.sampled)
        tokens = self.batch_tokens
        _refuse("batch_tokens", tokens is None or tokens >= 4, "at least 4", tokens)
        scopes = ("geometry", "geometry+norms", "all")
        _refuse("scope", self.scope in scopes, ", ".join(scopes), self.scope)
        on_gpu = self.device.startswith("cuda")
        _refuse("recorded", not self.recorded or on_gpu, "a CUDA device to record a step on", self.device)
        _refuse("mode", self.mode in (None, "geometric", "prefilter"), "geometric or prefilter", self.mode)

    def _check_budget(self) -> None:
        if (self.minutes is None) == (self.steps is None):
            found = "both" if self.steps is not None else "neither"
            raise ConfigError("heal", expected="--minutes or --steps, one of them", found=found)
        _refuse("steps", self.steps is None or self.steps >= 1, "at least 1", self.steps)
        minutes = self.minutes
        _refuse(
            "minutes", minutes is None or (math.isfinite(minutes) and minutes > 0), "more than 0", minutes
        )

    @property
    def rise(self) -> int:
        """Steps over which the rate rises: not a share of minutes, which compilation would use up."""
        if self.warmup is not None:
            return self.warmup
        return RISE if self.steps is None else min(RISE, self.steps // 10)

    @property
    def window(self) -> int:
        """N, tokens of a training window."""
        return self.sequence_length or LENGTH

    @property
    def written_length(self) -> int:
        """Tokens of a sampled text."""
        pieces = 1
        while self.window // pieces > SAMPLED_LENGTH and self.window % (2 * pieces) == 0:
            pieces *= 2
        return self.sampled_length or self.window // pieces

    @property
    def compiles(self) -> bool:
        """Whether layers are compiled: it takes about half a minute, and then every step half the time."""
        if not self.device.startswith("cuda"):
            return False
        long = (self.minutes or 0) >= 2 or (self.steps or 0) >= 2000
        return long if self.compiled is None else self.compiled

    @property
    def records(self) -> bool:
        """Whether a step is recorded."""
        return self.compiles if self.recorded is None else self.recorded

    @property
    def held_back(self) -> int:
        """Tokens held back."""
        if self.validation_tokens is not None:
            return self.validation_tokens
        return HELD_BACK["cuda" if self.device.startswith("cuda") else "cpu"]

    @property
    def step_tokens(self) -> int:
        """Tokens of one step."""
        return self.batch_tokens or DEVICE_TOKENS.get(self.device.split(":")[0], DEVICE_TOKENS["cpu"])

    @property
    def weights_rate(self) -> float:
        """Peak learning rate of norms and weights."""
        return self.weights_lr or WEIGHTS_LR.get(self.device.split(":")[0], WEIGHTS_LR["cpu"])

    @property
    def sampled_share(self) -> float:
        """Share of steps on sampled text."""
        return SAMPLED[self.scope] if self.sampled is None and self.scope in SAMPLED else self.sampled or 0.0

    @property
    def forward_dtype(self) -> str:
        """The dtype's name; "auto" is the checkpoint's own, since a rounded gate has another digest."""
        return "float32" if self.dtype == "auto" and self.device == "cpu" else self.dtype

    def lasting(self) -> dict[str, Any]:
        """The settings that a resumed run must share; budget, rates and checks may change."""
        names = ("scope", "mode", "window", "written_length", "sampled_share", "step_tokens")
        return {name: getattr(self, name) for name in (*names, "held_back", "seed", "forward_dtype")}

    def as_json(self) -> dict[str, Any]:
        """For the evidence, defaults resolved."""
        return dataclasses.asdict(self) | {key: getattr(self, name) for key, name in RESOLVED.items()}


def _refuse(name: str, good: bool, expected: str, found: Any) -> None:
    if not good:
        raise ConfigError(f"heal.{name}", expected=expected, found=str(found))
