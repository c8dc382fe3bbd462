"""Loads spectral bundles and routes with them; importing this needs neither torch nor a GPU."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from spectral_runtime.bundle import Bundle, load_bundle, write_bundle

if TYPE_CHECKING:
    from spectral_runtime.attaching import attach, load_model
    from spectral_runtime.backends import available_backends
    from spectral_runtime.router import Router

__version__ = "0.1.0"

__all__ = [
    "Bundle",
    "Router",
    "__version__",
    "attach",
    "available_backends",
    "load_bundle",
    "load_model",
    "write_bundle",
]

_LAZY = {
    "attach": "spectral_runtime.attaching",
    "load_model": "spectral_runtime.attaching",
    "Router": "spectral_runtime.router",
    "available_backends": "spectral_runtime.backends",
}


def __getattr__(name: str) -> Any:
    """Imports torch or the native core only when something that needs it is asked for (PEP 562)."""
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_LAZY[name]), name)
