"""What one `spectral::BvhRoute` node carries: attributes and arrays of one layer."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spectral_runtime.attaching.attachment import plan_layers
from spectral_runtime.attaching.layer import AttachedLayer
from spectral_runtime.bundle import Bundle, LayerTensors
from spectral_runtime.bundle.manifest import Mode
from spectral_runtime.errors import BundleError, ModelError
from spectral_runtime.gate import GateRule
from spectral_runtime.geometry import directions

logger = logging.getLogger(__name__)
FORMAT = 1
"""Of the node: moves when a plugin of the previous version could misread it."""

INPUTS = (
    "hidden", "mean", "projection", "directions", "beta", "spread", "gate_weight", "gate_bias", "choice_bias",
    "bvh_first", "bvh_count", "bvh_experts",
)  # fmt: skip
"""Of every node, in order. An array that a layer does not use is a row or column of zeros."""

OUTPUTS = ("ids", "weights")

STRUCTURE = (
    "score", "weight", "choice_bias", "group_score", "group_fill", "normalise", "normalise_min",
    "logit_scale", "softcap", "linear", "scores", "returns",
)  # fmt: skip
"""Fields of a rule that shape the function's body; the others are numbers it reads from the node."""

Array = NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Route:
    """One layer's routing step, ready to become a node."""

    path: str
    mode: Mode
    rule: GateRule
    candidates: int
    """C: experts whose exact logit counts; E for the gate itself and for `geometric`."""
    arrays: dict[str, Array]
    """By the names of `INPUTS`, all but `hidden`."""
    levels: int
    colours: int
    centred: bool
    gate_bias: bool
    digest: str
    """SHA-256 of the arrays: what a serialised plugin checks itself against."""

    @property
    def hidden(self) -> int:
        """D."""
        return int(self.arrays["gate_weight" if self.uses_gate else "projection"].shape[1])

    @property
    def uses_gate(self) -> bool:
        """Whether the gate's own rows are multiplied."""
        return self.mode != "geometric"

    @property
    def uses_geometry(self) -> bool:
        """Whether the geometry is read."""
        return self.mode in ("prefilter", "geometric")

    def attributes(self) -> dict[str, int | float | str]:
        """The node's attributes, all of them scalars or strings."""
        rule = self.rule
        return {
            "plugin_version": "1",
            "plugin_namespace": "spectral",
            "format": FORMAT,
            "layer": self.path,
            "digest": self.digest,
            "mode": self.mode,
            "experts": rule.experts,
            "hidden_size": self.hidden,
            "candidates": self.candidates,
            "levels": self.levels,
            "colours": self.colours,
            "centred": int(self.centred),
            "has_gate_bias": int(self.gate_bias),
            "has_choice_bias": int(rule.choice_bias),
            "exact_candidates": int(self.mode != "geometric"),
            **rule_attributes(rule),
        }


def rule_attributes(rule: GateRule) -> dict[str, int | float | str]:
    """The gate rule as attributes, by the names of its fields."""
    named = dataclasses.asdict(rule)
    for key in ("experts", "choice_bias", "expert_scale"):
        del named[key]
    return {key: int(value) if isinstance(value, bool) else value for key, value in named.items()}


def routes_of_model(
    model: Any, bundle: Bundle, mode: Mode | None = None, candidates: int | None = None
) -> tuple[Route, ...]:
    """The routes that `attach(model, bundle, mode)` would run; same arguments, same errors."""
    planned = plan_layers(model, bundle, mode, candidates)
    if any(layer.margin is not None for layer in planned):
        logger.warning(
            "adaptive candidate sets are exported at their cap: more candidates a token, never fewer"
        )
    return tuple(route_of(layer, tensors) for layer, tensors in zip(planned, bundle.layers, strict=True))


def route_of(layer: AttachedLayer, tensors: LayerTensors) -> Route:
    """One attached layer as a route; the gate's rows in the dtype of the model."""
    site = layer.site
    return make_route(
        tensors,
        mode="dense" if layer.passes_through and layer.mode == "prefilter" else layer.mode,
        candidates=layer.candidates,
        gate=(_numpy(site.weight), _numpy(site.bias)),
        choice_bias=_numpy(site.choice_bias),
    )


def routes_of_bundle(
    bundle: Bundle, mode: Mode | None = None, candidates: int | None = None
) -> tuple[Route, ...]:
    """Routes from the bundle alone.

    Raises:
        BundleError: when a layer's mode needs the gate's rows and the bundle does not carry them.
    """
    return tuple(_route_alone(bundle, layer, mode, candidates) for layer in bundle.layers)


def carries_what_it_needs(bundle: Bundle, mode: Mode | None = None) -> bool:
    """Whether `routes_of_bundle` would succeed: no layer needs the base model's gate."""
    return all(_stands_alone(layer, mode or layer.entry.mode) for layer in bundle.layers)


def _stands_alone(layer: LayerTensors, mode: Mode) -> bool:
    return layer.geometry is not None and (mode == "geometric" or layer.gate_weight is not None)


def _route_alone(bundle: Bundle, layer: LayerTensors, mode: Mode | None, candidates: int | None) -> Route:
    entry = layer.entry
    chosen = mode or entry.mode
    if not _stands_alone(layer, chosen):
        where = f"{bundle.path} ({entry.path})"
        remedy = "give the base model (--base), or convert with gate_rows"
        found = "no gate rows in the bundle"
        raise BundleError(where, expected=f"what {chosen} needs", found=found, remedy=remedy)
    count = candidates or entry.candidates or (entry.certificate.candidates if entry.certificate else 0)
    whole = chosen == "prefilter" and not entry.rule.top_k <= count < entry.rule.experts
    return make_route(
        layer,
        mode="dense" if whole else chosen,
        candidates=count,
        gate=(layer.gate_weight, layer.gate_bias),
        choice_bias=layer.choice_bias,
    )


def make_route(
    tensors: LayerTensors,
    *,
    mode: Mode,
    candidates: int,
    gate: tuple[Array | None, Array | None],
    choice_bias: Array | None,
) -> Route:
    """Lays the arrays of one layer out as the node wants them.

    Args:
        tensors: the layer.
        mode: what the node does.
        candidates: C of `prefilter`.
        gate: weight [E, D] and bias [E] of the gate, in the model's dtype.
        choice_bias: float32 [E], where the rule has one.
    """
    geometric, exact = mode in ("prefilter", "geometric"), mode != "geometric"
    arrays = placeholders(tensors.entry.rule.experts, tensors.entry.hidden)
    if geometric:
        arrays |= geometry_arrays(tensors)
    if mode == "geometric":
        arrays["spread"] = np.zeros(1, np.float32)  # the geometric mode takes the scores as they are
    if exact:
        arrays["gate_weight"] = _given(gate[0], tensors.entry.path)
    if exact and gate[1] is not None:
        arrays["gate_bias"] = gate[1]
    if choice_bias is not None:
        arrays["choice_bias"] = np.asarray(choice_bias, np.float32)
    geometry = tensors.geometry if geometric else None
    return Route(
        path=tensors.entry.path,
        mode=mode,
        rule=tensors.entry.rule,
        candidates=candidates if mode == "prefilter" else tensors.entry.rule.experts,
        arrays=arrays,
        levels=geometry.levels if geometry else 0,
        colours=geometry.colours if geometry else 0,
        centred=geometry is not None and geometry.common is not None,
        gate_bias=exact and gate[1] is not None,
        digest=arrays_digest(arrays),
    )


def placeholders(experts: int, hidden: int) -> dict[str, Array]:
    """Zeros for every array: shapes that fit, so that one body can mean layers of different modes."""
    wide = {"projection": (1, hidden), "directions": (experts, 1), "gate_weight": (1, hidden)}
    return {name: np.zeros(wide.get(name, (1,)), _dtype(name)) for name in INPUTS[1:]}


def geometry_arrays(tensors: LayerTensors) -> dict[str, Array]:
    """The arrays of the geometric score and the tree's shape; R' = R + 1 with a centred gate."""
    geometry, bvh = tensors.geometry, tensors.bvh
    assert geometry is not None
    projection, linear = geometry.projection, directions(geometry)
    if geometry.common is not None:
        projection = np.concatenate([projection, geometry.common[None]])
        linear = np.concatenate([linear, np.ones((geometry.experts, 1), np.float32)], axis=1)
    found: dict[str, Array] = {
        "mean": geometry.mean,
        "projection": projection,
        "directions": linear,
        "beta": geometry.beta,
        "spread": geometry.spread,
    }
    if bvh is not None:
        found |= {"bvh_first": bvh.first, "bvh_count": bvh.count, "bvh_experts": bvh.experts}
    return found


def arrays_digest(arrays: dict[str, Array]) -> str:
    """SHA-256 over name, shape, dtype and bytes of every array, in the order of the node's inputs."""
    digest = hashlib.sha256()
    for name in INPUTS[1:]:
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name}{array.dtype.str}{array.shape}".encode())
        digest.update(array.view(np.uint8).data if array.size else b"")
    return digest.hexdigest()


def require_one_structure(routes: Sequence[Route]) -> Route:
    """The first route, once it is sure that one function body can mean all of them.

    Raises:
        ModelError: two layers follow rules of different structure; export them one graph per layer.
    """
    first = routes[0]
    for route in routes[1:]:
        for name in STRUCTURE:
            mine, theirs = getattr(first.rule, name), getattr(route.rule, name)
            if mine != theirs:
                remedy = "export the routers one graph per layer (--per-layer)"
                raise ModelError(
                    route.path,
                    expected=f"{name} {mine} as layer {first.path}",
                    found=str(theirs),
                    remedy=remedy,
                )
    return first


def _given(weight: Array | None, path: str) -> Array:
    if weight is None:
        raise BundleError(path, expected="gate rows", found="none", remedy="give the base model (--base)")
    return weight


def _dtype(name: str) -> type:
    return np.int32 if name.startswith("bvh") else np.float32


def _numpy(tensor: Any) -> Array | None:
    """A torch tensor as numpy; bfloat16 by way of its bits, as ml_dtypes names it."""
    if tensor is None:
        return None
    tensor = tensor.detach().cpu().contiguous()
    if str(tensor.dtype) != "torch.bfloat16":
        return np.asarray(tensor.numpy())
    import ml_dtypes
    import torch

    return np.asarray(tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16))
