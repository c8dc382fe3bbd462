"""Writes the report of a bundle as one HTML file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from spectral_convert.report.facts import gather_facts
from spectral_convert.report.page import render_page
from spectral_convert.report.room import build_room
from spectral_convert.report.verdict import verdict
from spectral_runtime.bundle import load_bundle
from spectral_runtime.errors import ConfigError


def write_report(
    bundle: str | Path,
    *,
    out: str | Path,
    text: str | Path | None = None,
    base: str | None = None,
    evidence: Sequence[str | Path] = (),
) -> dict[str, Any]:
    """One self-contained page: verdict, layers, plots, the room, provenance.

    Args:
        bundle: folder or hub id.
        out: the HTML file.
        text: file or folder whose tokens fly through the room; needs the base model.
        base: where the base model lies now.
        evidence: JSON files of `evaluate`, `bench` and `analyse`.

    Returns:
        path, bytes and the lines of the verdict.

    Raises:
        UserError: an unreadable bundle, text or evidence, or a place that cannot be written.
    """
    loaded = load_bundle(bundle)
    facts = gather_facts(loaded, evidence)
    page = render_page(facts, build_room(loaded, text, base, facts.experts))
    target = Path(out)
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(page, encoding="utf-8")
        temporary.replace(target)
    except OSError as error:
        raise ConfigError(str(out), expected="a file that can be written", found=str(error)) from error
    return {"path": str(target), "bytes": target.stat().st_size, "verdict": verdict(facts)}
