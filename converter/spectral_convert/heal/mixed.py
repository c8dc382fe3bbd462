"""Changes classes and attributes for a while; torch.compile makes one graph for all modules of one class."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any


@cache
def mixed_kind(mixin: type, kind: Any) -> Any:
    """One class for all modules of a kind."""
    return type(f"{mixin.__name__.strip('_')}{kind.__name__}", (mixin, kind), {})


@contextmanager
def mixed(modules: Sequence[Any], mixin: type) -> Iterator[None]:
    """The modules with `mixin` in front of their classes; their own again afterwards."""
    kinds: list[Any] = [type(module) for module in modules]
    for module, kind in zip(modules, kinds, strict=True):
        module.__class__ = mixed_kind(mixin, kind)
    try:
        yield
    finally:
        for module, kind in zip(modules, kinds, strict=True):
            module.__class__ = kind


@contextmanager
def replaced(owners: Sequence[Any], name: str, value: Any) -> Iterator[None]:
    """The owners with another value of one attribute; their own again afterwards."""
    before = {id(owner): getattr(owner, name) for owner in owners}
    for owner in owners:
        setattr(owner, name, value)
    try:
        yield
    finally:
        for owner in owners:
            setattr(owner, name, before[id(owner)])
