"""The dataclasses of `spectral_config.json`: the base model, what each layer does, what was measured."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from spectral_runtime.gate import GateRule

FORMAT_VERSION = 1
"""Moves only when a reader of the previous version could misread a bundle."""

CARRIED = "."
"""The `id` of a base model that lies in the folder around the bundle."""

Mode = Literal["exact", "prefilter", "geometric", "dense"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseModel:
    """The checkpoint the bundle was fitted to."""

    id: str
    """Hub id, folder of a local checkpoint, or CARRIED."""
    revision: str | None
    """Commit on the Hub; None for a local folder."""
    model_type: str
    routers_sha256: str
    """`routers_digest` of the layers: one value that tells two checkpoints apart."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """A distribution-free promise about the candidates of one layer (conformal risk control)."""

    alpha: float
    """Bound on the expected share of expert weight that the candidates miss."""
    candidates: int
    """The smallest C that meets it."""
    risk: float
    """Mean missed weight share at C on the certify split."""
    bound: float
    """Finite-sample corrected risk, (n risk + 1) / (n + 1); at most alpha."""
    tokens: int
    documents: int
    split_sha256: str
    margin: float | None = None
    """With adaptive sets, the smallest margin that meets it, `candidates` being the cap."""
    mean_candidates: float | None = None
    """With adaptive sets, their mean size on the split."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """One of the three disjoint sets of calibration documents."""

    documents: int
    tokens: int
    sha256: str
    """SHA-256 over the documents' own digests, sorted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerEntry:
    """One MoE layer of the base model."""

    path: str
    """Dotted path of the router module, for example `model.layers.0.mlp.gate`."""
    hidden: int
    """D."""
    rule: GateRule
    mode: Mode
    router_sha256: str
    """SHA-256 over the router's weight, bias and choice bias in the base model, as float32."""
    levels: int = 0
    """L; 0 in the mode `dense`."""
    colour: int = 0
    """S."""
    candidates: int = 0
    """C of `prefilter`; 0 in the other modes."""
    margin: float | None = None
    """Of adaptive `prefilter` sets: of the C best, those this far below the anchor (`gate.anchor_ranks`), and the best K."""
    nodes: int = 0
    """Number of BVH nodes."""
    centred: bool = False
    """The mean gate row was removed before the fit; the bundle carries it (`common`)."""
    gate_rows: bool = False
    """The bundle carries the gate's own rows (`gate.weight`)."""
    gate_bias: bool = False
    """The bundle carries the gate's own bias (`gate.bias`); needs `gate_rows`."""
    explained: tuple[float, ...] = ()
    """Cumulative share of logit variance explained after each level, then after the colour."""
    certificate: Certificate | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FileEntry:
    """One file of the bundle, as listed for verification."""

    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """The whole of `spectral_config.json`."""

    format_version: int
    base_model: BaseModel
    layers: tuple[LayerEntry, ...]
    files: dict[str, FileEntry] = field(default_factory=dict)
    """Relative path to size and digest, for every file but the manifest itself."""
    splits: dict[str, Split] = field(default_factory=dict)
    """`fit`, `certify`, `evaluate`."""
    recipe: dict[str, Any] = field(default_factory=dict)
    """The resolved recipe; converting with it again gives the same bytes."""
    tools: dict[str, str] = field(default_factory=dict)
    """Versions of what made the bundle."""


def routers_digest(layers: Sequence[LayerEntry]) -> str:
    """SHA-256 over the layers' `router_sha256` as 64 lower-case hex characters each, in layer order."""
    return digest_of_routers(layer.router_sha256 for layer in layers)


def digest_of_routers(digests: Iterable[str]) -> str:
    """The same of the routers' own digests, for models that no bundle was made of."""
    return hashlib.sha256("".join(digests).encode("ascii")).hexdigest()
