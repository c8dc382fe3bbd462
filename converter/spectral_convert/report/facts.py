"""The facts of a report: the bundle, the evidence beside it and the evidence given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from spectral_convert.evidence import read_evidence
from spectral_runtime.bundle import Bundle
from spectral_runtime.errors import ConfigError

KINDS = ("evaluate", "bench", "experts", "polysemy")


@dataclass(frozen=True, slots=True)
class Facts:
    """Everything a report may show; what was not measured is empty."""

    bundle: Bundle
    fit: tuple[dict[str, Any], ...]
    """Per layer the curves of recall and missed weight over the candidates, from the certify split."""
    evaluation: dict[str, Any]
    """On the evaluate split, made by the conversion."""
    evaluations: tuple[tuple[str, dict[str, Any]], ...] = field(default=())
    """Name and record of evaluations on other texts."""
    benches: tuple[dict[str, Any], ...] = field(default=())
    experts: dict[str, Any] = field(default_factory=dict)
    polysemy: dict[str, Any] = field(default_factory=dict)


def gather_facts(bundle: Bundle, evidence: Sequence[str | Path] = ()) -> Facts:
    """The facts of a bundle.

    Raises:
        ConfigError: an evidence file that is unreadable, of no known kind, or of another base model.
    """
    given: dict[str, list[tuple[str, dict[str, Any]]]] = {kind: [] for kind in KINDS}
    for path in evidence:
        record = read_evidence(path)
        kind = kind_of(record, str(path))
        if kind == "evaluate":
            _require_same_base(record, bundle, str(path))
        given[kind].append((Path(path).stem, record))
    own = bundle.path / "evidence"
    fit: Any = read_list(own / "fit.json")
    return Facts(
        bundle=bundle,
        fit=tuple(fit),
        evaluation=read_evidence(own / "evaluate.json") if (own / "evaluate.json").is_file() else {},
        evaluations=tuple(given["evaluate"]),
        benches=tuple(record for _, record in given["bench"]),
        experts=given["experts"][-1][1] if given["experts"] else {},
        polysemy=given["polysemy"][-1][1] if given["polysemy"] else {},
    )


def kind_of(record: dict[str, Any], where: str) -> str:
    """Which command wrote a record; the output of `--json` carries no kind, so its keys tell."""
    if record.get("kind") in KINDS:
        return str(record["kind"])
    signs = {"rows": "bench", "ppl_base": "evaluate", "depth": "experts", "lemmas": "polysemy"}
    for key, kind in signs.items():
        if key in record:
            return kind
    remedy = "give files that spectral evaluate, bench or analyse wrote"
    raise ConfigError(
        where, expected="evidence of a known kind", found=str(record.get("kind")), remedy=remedy
    )


def _require_same_base(record: dict[str, Any], bundle: Bundle, where: str) -> None:
    protocol = record.get("protocol")
    mine = bundle.manifest.base_model.routers_sha256
    found = protocol.get("base_routers", mine) if isinstance(protocol, dict) else mine
    if found != mine:
        raise ConfigError(
            where, expected="evidence about this bundle's base model", found="about another one"
        )


def read_list(path: Path) -> list[dict[str, Any]]:
    """A JSON list of records, empty when the file is not there.

    Raises:
        ConfigError: something else is in it.
    """
    import json

    if not path.is_file():
        return []
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(str(path), expected="evidence in JSON", found=str(error)) from error
    if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
        raise ConfigError(str(path), expected="a list of records", found=type(found).__name__)
    return found
