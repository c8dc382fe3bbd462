"""The rules a manifest must meet beyond the types of its keys, checked before any array is looked at."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

from spectral_runtime.bundle.manifest import Certificate, LayerEntry, Manifest, routers_digest
from spectral_runtime.errors import BundleError
from spectral_runtime.gate import anchor_ranks

TENSOR_FILE = "spectral.safetensors"
MAX_EXPERTS = 2**24
"""Expert ids must be exact in float32, which sorted kernels pack them into."""
MAX_DIMENSION = 2**20
MAX_LEVELS = 64
ROUNDING = 1e-9
""""At most alpha" up to the rounding of the division that made the bound."""

_DIGEST = re.compile(r"[0-9a-f]{64}")
_FILE_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*(/[A-Za-z0-9_-][A-Za-z0-9._-]*)*")


def check_manifest(manifest: Manifest, where: str) -> None:
    """Raises BundleError, naming the key, if the manifest contradicts itself or the format."""
    base = manifest.base_model
    _check_texts(
        {"id": base.id, "revision": base.revision, "model_type": base.model_type}, f"{where}.base_model"
    )
    _check_texts({f"tools.{name}": text for name, text in manifest.tools.items()}, where)
    check_file_names(manifest.files, f"{where}.files")
    if TENSOR_FILE not in manifest.files:
        raise BundleError(
            f"{where}.files", expected=f"an entry for {TENSOR_FILE}", found=str(len(manifest.files))
        )
    for name, split in manifest.splits.items():
        _check_digest(split.sha256, f"{where}.splits.{name}.sha256")
        _check_range(split.documents, (0, None), f"{where}.splits.{name}.documents")
        _check_range(split.tokens, (0, None), f"{where}.splits.{name}.tokens")
    _check_layers(manifest, where)


def check_file_names(names: Iterable[str], where: str) -> None:
    """Raises BundleError unless every name is a plain relative path that stays inside its folder."""
    for name in names:
        if not _FILE_NAME.fullmatch(name):
            rule = "a relative path of letters, digits, '.', '_', '-', whose parts do not start with '.'"
            raise BundleError(where, expected=rule, found=ascii(name)[:120])


def _check_layers(manifest: Manifest, where: str) -> None:
    if not manifest.layers:
        raise BundleError(f"{where}.layers", expected="at least one layer", found="none")
    for index, entry in enumerate(manifest.layers):
        check_entry(entry, f"{where}.layers[{index}]")
    paths = [entry.path for entry in manifest.layers]
    if len(set(paths)) != len(paths):
        twice = next(path for path in paths if paths.count(path) > 1)
        raise BundleError(f"{where}.layers", expected="every path once", found=f"{twice!r} twice")
    digest = routers_digest(manifest.layers)
    if digest != manifest.base_model.routers_sha256:
        found = manifest.base_model.routers_sha256
        raise BundleError(
            f"{where}.base_model.routers_sha256", expected=f"{digest} (from the layers)", found=found
        )
    fit = manifest.splits.get("fit")
    for index, entry in enumerate(manifest.layers):
        if fit and entry.certificate and entry.certificate.split_sha256 == fit.sha256:
            key = f"{where}.layers[{index}].certificate.split_sha256"
            raise BundleError(
                key, expected="a split that was not fitted on", found="the digest of splits.fit"
            )


def check_entry(entry: LayerEntry, where: str) -> None:
    """Raises BundleError, naming the key, if one layer's entry contradicts itself."""
    _check_texts({"path": entry.path}, where)
    _check_digest(entry.router_sha256, f"{where}.router_sha256")
    _check_range(entry.hidden, (1, MAX_DIMENSION), f"{where}.hidden")
    _check_range(entry.rule.experts, (1, MAX_EXPERTS), f"{where}.rule.experts")
    _check_groups(entry, where)
    _check_sizes(entry, where)
    if entry.gate_bias and not entry.gate_rows:
        raise BundleError(f"{where}.gate_bias", expected="gate_rows beside it", found="a bias without rows")
    if len(entry.explained) > MAX_LEVELS + 1:
        expected = f"at most {MAX_LEVELS + 1} shares"
        raise BundleError(f"{where}.explained", expected=expected, found=str(len(entry.explained)))
    if entry.certificate:
        _check_certificate(entry, entry.certificate, f"{where}.certificate")


def _check_groups(entry: LayerEntry, where: str) -> None:
    rule = entry.rule
    reachable = rule.experts // rule.groups * rule.groups_kept
    if reachable < rule.top_k:
        found = f"{reachable} experts in {rule.groups_kept} of {rule.groups} groups"
        raise BundleError(f"{where}.rule.groups_kept", expected=f"room for top_k {rule.top_k}", found=found)


def _check_sizes(entry: LayerEntry, where: str) -> None:
    experts, geometric = entry.rule.experts, entry.mode != "dense"
    first = 1 if geometric else 0
    _check_range(entry.levels, (first, MAX_LEVELS if geometric else 0), f"{where}.levels")
    _check_range(entry.colour, (0, MAX_DIMENSION if geometric else 0), f"{where}.colour")
    _check_range(entry.nodes, (first, 2 * experts - 1 if geometric else 0), f"{where}.nodes")
    if entry.centred and not geometric:
        raise BundleError(f"{where}.centred", expected="false in the mode dense", found="true")
    bounds = (entry.rule.top_k, experts) if entry.mode == "prefilter" else (0, 0)
    _check_range(entry.candidates, bounds, f"{where}.candidates (mode {entry.mode})")
    _check_margin(entry, where)


def _check_margin(entry: LayerEntry, where: str) -> None:
    certificate = entry.certificate
    margins = {"margin": entry.margin, "certificate.margin": certificate.margin if certificate else None}
    for key, margin in margins.items():
        if margin is not None and not math.isfinite(margin):
            raise BundleError(f"{where}.{key}", expected="a finite margin", found=str(margin))
    if entry.margin is None:
        return
    if entry.mode != "prefilter":
        raise BundleError(f"{where}.margin", expected="the mode prefilter", found=entry.mode)
    anchor = anchor_ranks(entry.rule, entry.rule.experts)[1]
    _check_range(entry.candidates, (anchor, None), f"{where}.candidates (with a margin)")


def _check_certificate(entry: LayerEntry, certificate: Certificate, where: str) -> None:
    _check_digest(certificate.split_sha256, f"{where}.split_sha256")
    _check_range(certificate.candidates, (entry.rule.top_k, entry.rule.experts), f"{where}.candidates")
    _check_range(certificate.tokens, (1, None), f"{where}.tokens")
    _check_range(certificate.documents, (1, None), f"{where}.documents")
    if not 0.0 < certificate.alpha < 1.0:
        raise BundleError(
            f"{where}.alpha", expected="more than 0 and less than 1", found=str(certificate.alpha)
        )
    if not 0.0 <= certificate.risk <= certificate.bound <= certificate.alpha + ROUNDING:
        found = f"risk {certificate.risk}, bound {certificate.bound}, alpha {certificate.alpha}"
        raise BundleError(where, expected="0 <= risk <= bound <= alpha", found=found)


def _check_range(value: int, bounds: tuple[int, int | None], where: str) -> None:
    low, high = bounds
    if value < low or (high is not None and value > high):
        expected = f"{low} to {high}" if high is not None else f"at least {low}"
        raise BundleError(where, expected=expected, found=str(value))


def _check_digest(value: str, where: str) -> None:
    if not _DIGEST.fullmatch(value):
        raise BundleError(where, expected="64 lower-case hex digits", found=ascii(value)[:80])


def _check_texts(values: dict[str, str | None], where: str) -> None:
    # Control characters would reach a terminal through messages and tables.
    for key, text in values.items():
        if text is not None and (not text or not text.isprintable()):
            raise BundleError(
                f"{where}.{ascii(key)[1:-1]}", expected="printable text", found=ascii(text)[:80]
            )
