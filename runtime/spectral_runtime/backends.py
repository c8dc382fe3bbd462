"""The back-ends by name: which can run on this machine, and why the others cannot.

A back-end `name` is the module `spectral_runtime.<name>` with `unavailable() -> str | None` and a class
`Engine` (see `Engine` below). A new one is such a module and its name in `BACKENDS`.
"""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType
from typing import Protocol

from spectral_runtime.errors import BackendUnavailable, ConfigError
from spectral_runtime.geometry import Floats, Ints

BACKENDS = ("optix", "cuda", "cpu", "reference")
"""All names; `choose("auto")` takes the first of `AUTO` that can run."""

AUTO = ("cpu", "reference")
"""What "auto" tries, in this order: for arrays in host memory a GPU is not worth the copy."""


class Engine(Protocol):
    """What every back-end's `Engine(geometry, rule, bvh, *, choice_bias, threads)` answers."""

    def scores(self, hidden: Floats) -> Floats:
        """Approximate logits float32 [T, E] of hidden states float32 [T, D]."""

    def candidates(self, hidden: Floats, count: int) -> tuple[Ints, Floats]:
        """Ids int32 [T, C] and choice scores float32 [T, C] of hidden states float32 [T, D]."""


def unavailable(name: str) -> str | None:
    """The reason why the back-end `name` cannot run here, or None."""
    module = _module_of(name)
    if module is None:
        return "this version has no such back-end yet"
    reason: str | None = module.unavailable()
    return reason


def available_backends() -> tuple[str, ...]:
    """Names of the back-ends that can run here, in the order of `BACKENDS`."""
    return tuple(name for name in BACKENDS if unavailable(name) is None)


def choose(name: str) -> ModuleType:
    """The module of the back-end `name`, or of the best one for "auto".

    Raises:
        ConfigError: an unknown name.
        BackendUnavailable: it cannot run here; the message carries the reason.
    """
    if name == "auto":
        name = next(candidate for candidate in AUTO if unavailable(candidate) is None)
    if name not in BACKENDS:
        legal = ", ".join(("auto", *BACKENDS))
        raise ConfigError("backend", expected=f"one of {legal}", found=repr(name))
    reason = unavailable(name)
    module = _module_of(name)
    if reason is not None or module is None:
        able = ", ".join(available_backends())
        raise BackendUnavailable(
            f"backend '{name}'", found=reason or "nothing", remedy=f"available here: {able}"
        )
    return module


def _module_of(name: str) -> ModuleType | None:
    path = f"spectral_runtime.{name}"
    if importlib.util.find_spec(path) is None:
        return None
    return importlib.import_module(path)
