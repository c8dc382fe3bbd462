"""A converted layer: everything the stages found out about it, and what a budget chose for it."""

from __future__ import annotations

from dataclasses import dataclass

from spectral_convert.risk import MarginCurve, RiskCurve
from spectral_runtime.attaching.discovery import RouterSite
from spectral_runtime.bundle.manifest import Certificate, Mode
from spectral_runtime.gate import GateRule
from spectral_runtime.geometry import Bvh, Geometry


@dataclass(frozen=True, slots=True)
class Choice:
    """What was chosen for a layer by a budget."""

    mode: Mode
    candidates: int
    """C of `prefilter`, the cap of adaptive sets, 0 in the other modes."""
    margin: float | None


@dataclass(frozen=True, slots=True)
class ConvertedLayer:
    """Everything the stages found out about one layer."""

    site: RouterSite
    rule: GateRule
    geometry: Geometry
    explained: tuple[float, ...]
    bvh: Bvh
    curve: RiskCurve
    margins: MarginCurve
    certificate: Certificate
    choice: Choice | None = None
    """Of a budget; None leaves it to the recipe and the certificate."""
