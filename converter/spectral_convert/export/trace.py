"""Traces a transformers decoder into an ONNX skeleton, with placeholder nodes for our own steps."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import onnx
import torch
from torch import nn
from torch.onnx.ops import symbolic, symbolic_multi_out

from spectral_runtime.attaching.contract import Answer, form_probabilities, form_scores, form_triple
from spectral_runtime.attaching.discovery import RouterSite, find_routers
from spectral_runtime.errors import ModelError
from spectral_runtime.gate import GateRule

CacheForm = Literal["scatter", "concat"]
NAME = "spectral_onnx"
"""Under which our attention and experts are registered with transformers."""
PLACEHOLDERS = "spectral_trace"
"""Domain of the nodes `Route`, `Experts`, `Attention` and `Cache` in a skeleton."""
OPSET = 18
EXPORTED_FORMS = (form_triple, form_probabilities, form_scores)
"""Answers of routers that need no more than ids and weights."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheShape:
    """One layer's key and value cache: heads and widths."""

    heads: int
    key: int
    value_heads: int
    value: int


@dataclass(frozen=True, slots=True)
class Skeleton:
    """A traced decoder: `input_ids` int64 [B, S] and caches in, `logits` [B, S, V] and caches out."""

    model: onnx.ModelProto
    cache: CacheForm
    caches: tuple[CacheShape, ...]
    experts: tuple[str, ...]
    """Why the experts of a layer cannot be rewritten, or '' where they can; empty without placeholders."""


class _Past:
    """What transformers sees of the cache: keeps the new tensors so that the trace can return them."""

    def __init__(self, form: CacheForm, past: Sequence[torch.Tensor], start: torch.Tensor | None) -> None:
        self.form, self.past, self.start = form, past, start
        self.present: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def update(self, key: torch.Tensor, value: torch.Tensor, layer: int, *_: Any, **__: Any) -> Any:
        """New keys and values [B, H, S, W] in, all of them out."""
        self.present[layer] = (self._joined(key, 2 * layer), self._joined(value, 2 * layer + 1))
        return self.present[layer]

    def _joined(self, new: torch.Tensor, index: int) -> torch.Tensor:
        past = self.past[index]
        if self.form == "concat":
            return torch.cat([past, new], dim=2)
        inputs = (past, new, self.start)
        return symbolic(f"{PLACEHOLDERS}::Cache", inputs, dtype=past.dtype, shape=past.shape, version=1)

    def get_seq_length(self, *_: Any) -> int:
        """Never asked for: positions and mask are given."""
        raise AssertionError

    def tensors(self) -> list[torch.Tensor]:
        """Keys and values of all layers in order."""
        return [tensor for layer in sorted(self.present) for tensor in self.present[layer]]


class _Decoder(nn.Module):
    """The model as a function of token ids, where they start, and caches."""

    def __init__(self, model: nn.Module, form: CacheForm) -> None:
        super().__init__()
        self.model, self.form = model, form

    def forward(self, input_ids: torch.Tensor, start: torch.Tensor | None, past: list[torch.Tensor]) -> Any:
        width = past[0].shape[2]
        steps = torch.arange(input_ids.shape[1])
        if self.form == "concat":
            positions = (steps + width).unsqueeze(0)
            columns = torch.arange(width + input_ids.shape[1])
        else:
            assert start is not None
            positions = start.unsqueeze(1) + steps.unsqueeze(0)
            columns = torch.arange(width)
        mask = columns.view(1, 1, 1, -1) <= positions[:, None, :, None]
        tape = _Past(self.form, past, start)
        output = self.model(
            input_ids=input_ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=tape,
            use_cache=True,
        )
        return (output.logits, *tape.tensors())


def _attention(
    module: nn.Module, *states: torch.Tensor, scaling: float | None = None, **options: Any
) -> tuple[torch.Tensor, None]:
    """The attention interface of transformers; query, key and value [B, H, S, W], mask bool [B, 1, S, P]."""
    query, _, value, _ = states
    for name in ("sliding_window", "softcap", "s_aux"):
        if options.get(name) is not None:
            raise ModelError(type(module).__name__, expected="plain causal attention", found=name)
    scale = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
    shape = (*query.shape[:3], value.shape[3])
    out = symbolic(
        f"{PLACEHOLDERS}::Attention", states, {"scale": scale}, dtype=query.dtype, shape=shape, version=1
    )
    return out.transpose(1, 2), None


def _experts(
    module: nn.Module, hidden: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """Transformers' experts interface; hidden [T, D], ids and weights [T, K]."""
    inputs = (hidden, ids, weights, module.gate_up_proj, module.down_proj)
    return symbolic(f"{PLACEHOLDERS}::Experts", inputs, dtype=hidden.dtype, shape=hidden.shape, version=1)  # type: ignore[arg-type]


def experts_reason(module: nn.Module) -> str:
    """Why an experts module is not the plain gated form (SiLU, no bias, [E, 2I, D] and [E, D, I]), or ''."""
    wanted = {
        "has_gate": True, "has_bias": False, "is_transposed": False, "is_concatenated": True,
        "has_post_expert_norm": False, "_is_expert_parallel": False,
    }  # fmt: skip
    for name, value in wanted.items():
        if getattr(module, name, None) != value:
            return f"{name} is {getattr(module, name, None)}"
    activation = type(getattr(module, "act_fn", None)).__name__
    if activation not in ("SiLU", "SiLUActivation"):
        return f"activation {activation}"
    gate = getattr(type(module), "_apply_gate", None)
    plain = getattr(gate, "__name__", "") == "_default_apply_gate"
    return "" if plain else "a gating of its own"


@dataclass(frozen=True, slots=True)
class _Layer:
    """What a placeholder knows of its router."""

    number: int
    site: RouterSite
    rule: GateRule


class _Placeholder:
    """Mixed in front of a router's class: emits one node for the whole routing step."""

    _spectral: _Layer

    def forward(self, hidden_states: torch.Tensor, *_: Any, **__: Any) -> Any:
        layer = self._spectral
        hidden = layer.site.gate_input(hidden_states)
        shape = (hidden.shape[0], layer.rule.top_k)
        kind = torch.float32 if layer.rule.returns == "float32" else hidden.dtype
        ids, weights = symbolic_multi_out(
            f"{PLACEHOLDERS}::Route",
            (hidden,),
            {"layer": layer.number},
            dtypes=(torch.int32, kind),
            shapes=(shape, shape),
            version=1,
        )
        logits = weights.new_zeros(hidden.shape[0], layer.rule.experts)
        return layer.site.contract.form(self, Answer(logits, weights, ids.to(torch.int64)))  # type: ignore[arg-type]


@contextmanager
def _prepared(
    model: Any, sites: Sequence[RouterSite], rules: Sequence[GateRule], implementation: str
) -> Iterator[None]:
    """The model with placeholders in place of routers, attention and experts; as before afterwards."""
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS.register(NAME, _attention)
    ALL_EXPERTS_FUNCTIONS.register(NAME, _experts)
    config = model.config
    before = config._attn_implementation, config._experts_implementation
    classes = [type(site.module) for site in sites]
    try:
        for number, (site, rule) in enumerate(zip(sites, rules, strict=True)):
            site.module._spectral = _Layer(number, site, rule)  # type: ignore[assignment]
            kind = classes[number]
            site.module.__class__ = type(f"Traced{kind.__name__}", (_Placeholder, kind), {})
        config._attn_implementation, config._experts_implementation = NAME, implementation
        yield
    finally:
        config._attn_implementation, config._experts_implementation = before
        for site, original in zip(sites, classes, strict=True):
            site.module.__class__ = original
            site.module.__dict__.pop("_spectral", None)


def cache_shapes(model: Any) -> tuple[CacheShape, ...]:
    """What each attention layer caches, found by running one token."""
    from transformers import DynamicCache

    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        ids = torch.zeros((1, 1), dtype=torch.long, device=next(model.parameters()).device)
        model(input_ids=ids, past_key_values=cache, use_cache=True)
    shapes = []
    for number, layer in enumerate(cache.layers):
        keys, values = getattr(layer, "keys", None), getattr(layer, "values", None)
        if keys is None or values is None or getattr(layer, "is_sliding", False):
            found = type(layer).__name__
            raise ModelError(f"layer {number}", expected="a plain key and value cache", found=found)
        sizes = (keys.shape[1], keys.shape[3], values.shape[1], values.shape[3])
        shapes.append(CacheShape(heads=sizes[0], key=sizes[1], value_heads=sizes[2], value=sizes[3]))
    return tuple(shapes)


def trace_decoder(
    model: Any, rules: Sequence[GateRule], cache: CacheForm, *, rewrite_experts: bool = True
) -> Skeleton:
    """Exports a causal language model with placeholders where our nodes go.

    Args:
        model: untouched, in evaluation mode, on the CPU.
        rules: the gate rule of every router, in layer order.
        cache: `scatter`, static caches [B, H, P, W] written at `start`; or `concat`, growing ones.
        rewrite_experts: emit placeholders for the experts; else transformers' own `batched_mm`, a gather.

    Raises:
        ModelError: routers, experts, attention or caches of a kind that is not exported.
    """
    sites, shapes = find_routers(model), cache_shapes(model)
    for site in sites:
        if site.contract.form not in EXPORTED_FORMS:
            found = f"{type(site.module).__name__}, whose block chooses by the logits itself"
            raise ModelError(site.path, expected="a router that answers with ids and weights", found=found)
    implementation = NAME if rewrite_experts else "batched_mm"
    with _prepared(model, sites, rules, implementation), torch.no_grad():
        program = _export(_Decoder(model, cache), shapes, cache, next(model.parameters()).dtype)
    return Skeleton(program, cache, shapes, unplain_experts(model) if rewrite_experts else ())


def unplain_experts(model: nn.Module) -> tuple[str, ...]:
    """`experts_reason` of every experts module, in layer order."""
    return tuple(experts_reason(module) for module in model.modules() if hasattr(module, "is_transposed"))


@contextmanager
def _quiet(logger: logging.Logger) -> Iterator[None]:
    """Torch's exporter logs that torchvision is absent, once per operator."""
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def cache_names(shapes: Sequence[CacheShape]) -> list[str]:
    """`0.key`, `0.value`, `1.key`, and so on."""
    return [f"{layer}.{part}" for layer in range(len(shapes)) for part in ("key", "value")]


def _export(
    decoder: _Decoder, shapes: Sequence[CacheShape], cache: CacheForm, dtype: torch.dtype
) -> onnx.ModelProto:
    batch, steps, width = 2, 3, 5
    scatter = cache == "scatter"
    past = [
        torch.zeros(batch, heads, width, size, dtype=dtype)
        for shape in shapes
        for heads, size in ((shape.heads, shape.key), (shape.value_heads, shape.value))
    ]
    start = torch.ones(batch, dtype=torch.int64) if scatter else None
    sizes = torch.export.Dim
    rows, length, past_length = sizes("batch"), sizes("steps"), sizes("capacity" if scatter else "past")
    dynamic = (
        {0: rows, 1: length},
        {0: rows} if scatter else None,
        [{0: rows, 2: past_length} for _ in past],
    )
    names = cache_names(shapes)
    with warnings.catch_warnings(), _quiet(logging.getLogger("torch.onnx")):
        warnings.simplefilter("ignore")  # torch's exporter warns about its own deprecations
        program = torch.onnx.export(
            decoder,
            (torch.zeros(batch, steps, dtype=torch.int64), start, past),
            input_names=["input_ids", *(["start"] if scatter else []), *(f"past.{name}" for name in names)],
            output_names=["logits", *(f"present.{name}" for name in names)],
            dynamic_shapes=dynamic,
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    return program.model_proto
