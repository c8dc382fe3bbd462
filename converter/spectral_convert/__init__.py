"""Converts Mixture-of-Experts checkpoints into spectral bundles, and measures the result."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spectral_convert.bench import bench_bundle
    from spectral_convert.convert import convert_checkpoint
    from spectral_convert.evaluate import evaluate_bundle
    from spectral_convert.families.table import list_families
    from spectral_convert.generate import generate_text
    from spectral_convert.healing import heal_bundle
    from spectral_convert.inspect import inspect_bundle
    from spectral_convert.plan import plan_conversion
    from spectral_convert.push import push_bundle

__all__ = [
    "bench_bundle",
    "convert_checkpoint",
    "evaluate_bundle",
    "generate_text",
    "heal_bundle",
    "inspect_bundle",
    "list_families",
    "plan_conversion",
    "push_bundle",
]

_VERBS = {
    "bench_bundle": "spectral_convert.bench",
    "convert_checkpoint": "spectral_convert.convert",
    "evaluate_bundle": "spectral_convert.evaluate",
    "generate_text": "spectral_convert.generate",
    "heal_bundle": "spectral_convert.healing",
    "inspect_bundle": "spectral_convert.inspect",
    "list_families": "spectral_convert.families.table",
    "plan_conversion": "spectral_convert.plan",
    "push_bundle": "spectral_convert.push",
}


def __getattr__(name: str) -> Any:
    """Imports a verb, and torch with it, when it is asked for (PEP 562): `--help` stays quick."""
    if name not in _VERBS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_VERBS[name]), name)
