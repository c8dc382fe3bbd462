"""`attach`: swaps the class of every router for one that routes by the bundle, verifies it, and can undo it."""

from __future__ import annotations

from types import TracebackType
from typing import Any

import torch
from torch import nn

from spectral_runtime.attaching.contract import Answer
from spectral_runtime.attaching.discovery import RouterSite, find_routers, router_sha256
from spectral_runtime.attaching.layer import AttachedLayer
from spectral_runtime.attaching.scorer import Scorer
from spectral_runtime.bundle import Bundle
from spectral_runtime.bundle.manifest import LayerEntry, Mode
from spectral_runtime.errors import BundleError, ConfigError, ModelError


class _Spectral:
    """Mixed in front of the family's router class; `_spectral` is the layer's plan."""

    _spectral: AttachedLayer

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        layer = self._spectral
        if not torch.compiler.is_compiling():
            layer.calls += 1
        if layer.passes_through:
            return super().forward(hidden_states, *args, **kwargs)  # type: ignore[misc]
        logits, ids, weights = layer.route(layer.site.gate_input(hidden_states))
        return layer.site.contract.form(self, Answer(logits, weights, ids))  # type: ignore[arg-type]


class Attachment:
    """The attached routers of one model; a context manager, or call `detach` yourself."""

    def __init__(self, model: nn.Module, layers: tuple[AttachedLayer, ...]) -> None:
        self.model, self.layers = model, layers
        self._undo: list[tuple[nn.Module, type[nn.Module], Any]] = []

    def swap(self) -> None:
        """Replaces the routers' classes; accelerate's hooked modules need their saved forward replaced too."""
        for layer in self.layers:
            module = layer.site.module
            original = type(module)
            self._undo.append((module, original, module.__dict__.get("_old_forward")))
            module.__class__ = type(f"Spectral{original.__name__}", (_Spectral, original), {})
            module._spectral = layer  # type: ignore[assignment]
            if "_old_forward" in module.__dict__:
                module._old_forward = type(module).forward.__get__(module)

    def detach(self) -> None:
        """Gives every router its own class back; safe to call twice."""
        while self._undo:
            module, original, old_forward = self._undo.pop()
            module.__class__ = original
            del module._spectral
            if old_forward is not None:
                module._old_forward = old_forward

    def verify(self) -> None:
        """Runs one token and raises unless every router was entered.

        Raises:
            ModelError: when the model runs its routing through other code (a fused or quantised kernel).
        """
        before = [layer.calls for layer in self.layers]
        parameter = next(self.model.parameters())
        with torch.no_grad():
            self.model(input_ids=torch.zeros((1, 1), dtype=torch.long, device=parameter.device))
        missed = [x.site.path for x, calls in zip(self.layers, before, strict=True) if x.calls == calls]
        if missed:
            found = f"{len(missed)} never entered, first {missed[0]}"
            remedy = "load the model without fused or quantised MoE kernels (MXFP4: dequantize=True; use_kernels=False)"
            raise ModelError("attach", expected="every router to run our code", found=found, remedy=remedy)

    def __enter__(self) -> Attachment:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.detach()


def attach(
    model: nn.Module,
    bundle: Bundle,
    mode: Mode | None = None,
    *,
    candidates: int | None = None,
    verify: bool = True,
) -> Attachment:
    """Replaces the routers of a transformers model by the bundle's.

    Args:
        model: the model the bundle was made from, on any device, in float32 or bfloat16.
        bundle: from `load_bundle`.
        mode: one mode for all layers; None takes each layer's own. Layers whose bundle entry has no geometry stay dense.
        candidates: overrides C of `prefilter` for all layers; adaptive sets then have this size.
        verify: run one token and raise unless every router was entered.

    Raises:
        ModelError: when the model has no routers, or its own code bypasses them.
        BundleError: when the bundle was made for other router weights.
        ConfigError: when the mode or the candidates do not fit.
    """
    attachment = Attachment(model, plan_layers(model, bundle, mode, candidates))
    attachment.swap()
    try:
        if verify:
            attachment.verify()
    except BaseException:
        attachment.detach()
        raise
    return attachment


def plan_layers(
    model: nn.Module, bundle: Bundle, mode: Mode | None = None, candidates: int | None = None
) -> tuple[AttachedLayer, ...]:
    """What `attach` would do to each router, without doing it; same arguments, same errors."""
    sites = find_routers(model)
    if any(isinstance(site.module, _Spectral) for site in sites):
        found = "attached ones"
        raise ModelError(
            "attach", expected="a model without attached routers", found=found, remedy="detach first"
        )
    _check_base(sites, bundle)
    return tuple(
        _plan(site, layer, mode, candidates) for site, layer in zip(sites, bundle.layers, strict=True)
    )


def _check_base(sites: tuple[RouterSite, ...], bundle: Bundle) -> None:
    where, base = str(bundle.path), bundle.manifest.base_model
    remedy = f"load the base model {base.id} at revision {base.revision or 'used for the conversion'}"
    if len(sites) != len(bundle.layers):
        found = f"a model with {len(sites)}"
        raise BundleError(where, expected=f"{len(bundle.layers)} routers", found=found, remedy=remedy)
    for site, layer in zip(sites, bundle.layers, strict=True):
        entry = layer.entry
        if site.path != entry.path:
            raise BundleError(where, expected=f"router {entry.path}", found=site.path, remedy=remedy)
        found = router_sha256(site)
        if found != entry.router_sha256:
            expected = f"router {entry.path} with digest {entry.router_sha256[:12]}"
            raise BundleError(where, expected=expected, found=found[:12], remedy=remedy)


def _plan(site: RouterSite, layer: Any, mode: Mode | None, candidates: int | None) -> AttachedLayer:
    entry: LayerEntry = layer.entry
    chosen: Mode = mode or entry.mode
    if layer.geometry is None and chosen in ("prefilter", "geometric"):
        if mode is not None and entry.mode != "dense":
            remedy = "convert again with this mode, or attach with mode='dense'"
            raise ConfigError(
                f"attach.mode ({entry.path})", expected="a layer with geometry", found=mode, remedy=remedy
            )
        chosen = "dense"
    count = (
        candidates
        or entry.candidates
        or (entry.certificate.candidates if entry.certificate else entry.rule.experts)
    )
    if chosen == "prefilter" and not entry.rule.top_k <= count <= entry.rule.experts:
        expected = f"{entry.rule.top_k} (K) to {entry.rule.experts} (E)"
        raise ConfigError(f"attach.candidates ({entry.path})", expected=expected, found=str(count))
    scorer = None if layer.geometry is None else Scorer.of(layer.geometry, site.weight.device)
    margin = entry.margin if chosen == "prefilter" and candidates is None else None
    return AttachedLayer(site, entry.rule, chosen, count, scorer, geometry=layer.geometry, margin=margin)
