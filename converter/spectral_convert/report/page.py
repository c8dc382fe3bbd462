"""The page: facts as HTML that reads without a script, figures and the room as data that a script draws."""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from string import Template
from typing import Any

from spectral_convert.report.facts import Facts
from spectral_convert.report.figures import Figure, figures
from spectral_convert.report.verdict import verdict
from spectral_runtime.errors import ConfigError

PARTS = Path(__file__).parent / "parts"


def render_page(facts: Facts, room: dict[str, Any]) -> str:
    """One HTML document with everything in it; nothing is fetched when it opens."""
    drawn = figures(facts)
    manifest = facts.bundle.manifest
    return Template(_part("page.html")).substitute(
        title=html.escape(f"Spectral report: {manifest.base_model.id}"),
        model=html.escape(manifest.base_model.id),
        style=_part("page.css"),
        verdict=_items(verdict(facts)),
        layers=layer_table(facts),
        room=_part("room.html") if any(layer["levels"] for layer in room["layers"]) else _no_room(),
        figures="\n".join(_figure(figure) for figure in drawn),
        pairs=pairs_section(facts),
        experts=_conclusions("What the experts serve", facts.experts),
        senses=_conclusions("Senses", facts.polysemy),
        provenance=provenance(facts),
        data=embed(
            {"room": room, "figures": {f.name: {"data": f.traces, "layout": f.layout} for f in drawn}}
        ),
        plotly=_plotly(),
        script=_part("page.js"),
    )


def _part(name: str) -> str:
    return (PARTS / name).read_text(encoding="utf-8")


def _plotly() -> str:
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise ConfigError(
            "report", expected="plotly", found=str(error), remedy="pip install plotly"
        ) from error
    return str(get_plotlyjs()).replace("</script", "<\\/script")


def embed(value: Any) -> str:
    """JSON that is safe inside a script element: a token of the text may be `</script>`."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _items(lines: Iterable[str]) -> str:
    return "<ul>" + "".join(f"<li>{html.escape(line)}</li>" for line in lines) + "</ul>"


def _no_room() -> str:
    return "<p>Every layer keeps its dense gate: there are no spheres to show.</p>"


def _figure(figure: Figure) -> str:
    title, reading = html.escape(figure.title), html.escape(figure.reading)
    return (
        f'<figure><h3>{title}</h3><div class="plot" id="plot-{figure.name}" data-figure="{figure.name}" '
        f'role="img" aria-label="{title}"></div><figcaption>{reading}</figcaption></figure>'
    )


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table that scrolls by itself on a narrow screen."""
    top = "".join(f'<th scope="col">{html.escape(cell)}</th>' for cell in head)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f'<div class="wide"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def layer_table(facts: Facts) -> str:
    """One row a layer: what it does, what was promised, what was measured."""
    measured = {layer["path"]: layer for layer in facts.evaluation.get("layers", [])}
    rows = []
    for layer in facts.bundle.layers:
        entry, found = layer.entry, measured.get(layer.entry.path, {})
        certificate = entry.certificate
        rows.append(
            (
                entry.path,
                entry.mode,
                str(entry.rule.experts),
                str(entry.rule.top_k),
                f"{entry.levels} x 3 + {entry.colour}",
                str(entry.candidates or "-"),
                _percent(entry.explained[-1] if entry.explained else None),
                _percent(certificate.bound if certificate else None),
                _percent(found.get("recall")),
                _percent(found.get("kept_mass")),
            )
        )
    head = ("router", "mode", "experts", "chosen", "dimensions", "candidates", "explained", "risk bound",
            "recall", "weight kept")  # fmt: skip
    return table(head, rows)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f} %"


def pairs_section(facts: Facts) -> str:
    """Minimal pairs by phenomenon, of every evaluation that has them."""
    parts = []
    for name, record in facts.evaluations:
        if "pairs" not in record:
            continue
        pairs = record["pairs"]
        rows = [
            (
                str(row["name"]),
                str(row["pairs"]),
                _percent(row["accuracy_base"]),
                _percent(row["accuracy"]),
                f"{100 * row['delta']:+.2f}",
                f"{row['mcnemar_p']:.3f}",
            )
            for row in (*pairs["phenomena"], {"name": "overall", **pairs["overall"]})
        ]
        head = ("phenomenon", "pairs", "untouched", "converted", "points", "McNemar p")
        parts.append(f"<h3>Minimal pairs: {html.escape(name)}</h3>{table(head, rows)}")
    return "\n".join(parts)


def _conclusions(title: str, record: dict[str, Any]) -> str:
    lines = record.get("conclusions", [])
    return f"<h3>{html.escape(title)}</h3>{_items(map(str, lines))}" if lines else ""


def provenance(facts: Facts) -> str:
    """Where every number comes from: model, digests, splits, recipe, versions."""
    manifest = facts.bundle.manifest
    base = manifest.base_model
    rows = [
        ("base model", base.id), ("revision", base.revision or "a local folder"), ("family", base.model_type),
        ("routers", base.routers_sha256), ("format", str(manifest.format_version)),
    ]  # fmt: skip
    for name, split in manifest.splits.items():
        rows.append((f"{name} split", f"{split.documents} documents, {split.tokens} tokens, {split.sha256}"))
    rows += [(f"recipe {key}", str(value)) for key, value in manifest.recipe.items() if value is not None]
    rows += [(f"version of {key}", value) for key, value in manifest.tools.items()]
    rows += [
        (f"evidence {name}", json.dumps(r.get("protocol"), sort_keys=True)) for name, r in facts.evaluations
    ]
    return table(("what", "value"), rows)
