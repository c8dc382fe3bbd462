"""Finds the routers of a loaded transformers model through what its own class records as `router_logits`."""

from __future__ import annotations

import hashlib
import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from spectral_runtime.attaching.bypass import refuse_bypassed, refuse_kernel
from spectral_runtime.attaching.contract import Contract, Route, contract_of, refusal_of
from spectral_runtime.errors import ModelError

CHOICE_BIAS_NAMES = ("e_score_correction_bias", "expert_bias", "expert_biases")
OTHER_MODALITIES = re.compile(r"(^|\.)(vision|visual|image|audio|speech|talker)\w*(\.|$)")
"""Towers that a text never enters: their routers are left alone."""

ROUTER_NAMES = re.compile(r"(Top[kK](Router|Gating)|MoEV\d+Gate|^(Llama4|Dbrx)Router)$")
"""What transformers calls its router classes."""

Place = tuple[nn.Module, str]
"""A tensor by its owner and name: looked up when needed, because loading and moving replace tensors."""


@dataclass(frozen=True, slots=True)
class RouterSite:
    """One router: where it sits, how it is called, and the tensors that decide its choices."""

    path: str
    module: nn.Module
    block: nn.Module
    """The module that owns the router."""
    contract: Contract
    weight_at: Place
    bias_at: Place | None
    choice_bias_at: Place | None
    logits_index: int
    """Position of the logits in the router's output tuple."""

    @property
    def weight(self) -> torch.Tensor:
        """[E, D]."""
        return _tensor_at(self.weight_at)

    @property
    def bias(self) -> torch.Tensor | None:
        """[E], added to the logits."""
        return None if self.bias_at is None else _tensor_at(self.bias_at)

    @property
    def choice_bias(self) -> torch.Tensor | None:
        """[E], added to the scores for the choice only."""
        return None if self.choice_bias_at is None else _tensor_at(self.choice_bias_at).reshape(-1)

    def gate_input(self, hidden: torch.Tensor) -> torch.Tensor:
        """What the linear gate multiplies, [T, D], from what the router is called with."""
        return self.contract.gate_input(self.module, hidden)

    def route_of(self, output: Any) -> Route:
        """Weights [T, K] and ids int64 [T, K] of an answer of the router.

        Raises:
            ModelError: when the answer has another form than the family's.
        """
        route = self.contract.read(self.module, self.block, output)
        if route is None:
            kind = type(self.module).__name__
            raise ModelError(self.path, expected="a router returning (logits, weights, ids)", found=kind)
        return route


def _tensor_at(place: Place) -> torch.Tensor:
    owner, name = place
    found: torch.Tensor = getattr(owner, name)
    return found


def recorders(model: nn.Module) -> Iterator[Any]:
    """Yields the `router_logits` recorders that the model's classes declare in `_can_record_outputs`."""
    for module in model.modules():
        declared = (getattr(type(module), "_can_record_outputs", None) or {}).get("router_logits")
        if declared is not None:
            yield from declared if isinstance(declared, list | tuple) else (declared,)


def find_routers(model: nn.Module) -> tuple[RouterSite, ...]:
    """All routers of the model's text tower, in layer order.

    Raises:
        ModelError: when the model's classes declare no router, none is present, or its family is refused.
    """
    refuse_bypassed(model)
    targets = _targets(model)
    sites = tuple(_sites(model, targets))
    if not sites:
        name = type(model).__name__
        remedy = "convert a Mixture-of-Experts checkpoint; `spectral families` lists the supported ones"
        raise ModelError(
            name, expected="a model with routers", found="no Mixture-of-Experts layer", remedy=remedy
        )
    return sites


def _targets(model: nn.Module) -> dict[type[nn.Module], int | None]:
    """Router classes and the place of the logits in what they answer; None where only the name tells a router.

    In transformers 5.17 some families (deepseek_v3, dbrx) record nothing, others (llama4) the router's block.
    """
    named = {type(module) for module in model.modules() if ROUTER_NAMES.search(type(module).__name__)}
    found: dict[type[nn.Module], int | None] = {}
    for recorder in recorders(model):
        kind = getattr(recorder, "target_class", recorder)
        if kind is nn.Linear:
            remedy = "update transformers: newer versions give this family a router"
            inside = "a plain Linear, whose block chooses from its logits"
            raise ModelError(type(model).__name__, expected="a router class", found=inside, remedy=remedy)
        found[kind] = getattr(recorder, "index", 0)
    if not found:
        return dict.fromkeys(named)
    blocks = [module for module in model.modules() if isinstance(module, tuple(found))]
    inner = {type(part) for block in blocks for part in block.modules() if part is not block}
    return {**dict.fromkeys(inner & named), **found}


def _sites(model: nn.Module, targets: dict[type[nn.Module], int | None]) -> Iterator[RouterSite]:
    kinds = tuple(targets)
    for path, module in model.named_modules():
        if not isinstance(module, kinds) or OTHER_MODALITIES.search(path):
            continue
        if any(isinstance(inner, kinds) for inner in module.modules() if inner is not module):
            continue  # a block that records what the router inside it answers
        reason = refusal_of(type(module))
        if reason is not None:
            remedy = "no override exists: keep the model as it is; `spectral families` lists what converts"
            raise ModelError(
                path, expected="a linear gate", found=f"{type(module).__name__}: {reason}", remedy=remedy
            )
        block = model.get_submodule(path.rpartition(".")[0])
        refuse_kernel(path, module, block)
        index = next(index for kind, index in targets.items() if isinstance(module, kind))
        yield _site(path, module, block, index)


def _site(path: str, module: nn.Module, block: nn.Module, index: int | None) -> RouterSite:
    weights = [(name, p) for name, p in module.named_parameters() if p.dim() == 2 and len(p) > 1]
    if len(weights) != 1:
        found = f"{type(module).__name__} with {len(weights)}"
        raise ModelError(path, expected="a router with one [experts, hidden] weight", found=found)
    name, weight = weights[0]
    bias = next((n for n, p in module.named_parameters() if _is_plain_bias(n, p, weight.shape[0])), None)
    return RouterSite(
        path=path,
        module=module,
        block=block,
        contract=contract_of(type(module), recorded=index is not None),
        weight_at=_place(module, name),
        bias_at=None if bias is None else _place(module, bias),
        choice_bias_at=_choice_bias(module, block),
        logits_index=index or 0,
    )


def _choice_bias(module: nn.Module, block: nn.Module) -> Place | None:
    """Inside the router, or in its block, which then hands it over as the second argument."""
    owned = [_place(module, name) for name, _ in (*module.named_parameters(), *module.named_buffers())]
    if takes_bias(module):
        owned += [(block, name) for name in (*block._parameters, *block._buffers)]
    return next((place for place in owned if place[1] in CHOICE_BIAS_NAMES and _is_tensor(place)), None)


def takes_bias(module: nn.Module) -> bool:
    """Whether the router is called with its choice bias after the hidden states."""
    names = list(inspect.signature(type(module).forward).parameters)
    return len(names) > 2 and names[2].endswith("bias")


def _is_tensor(place: Place) -> bool:
    return torch.is_tensor(getattr(*place))


def _place(module: nn.Module, name: str) -> Place:
    owner, _, leaf = name.rpartition(".")
    return module.get_submodule(owner), leaf


def _is_plain_bias(name: str, parameter: torch.Tensor, experts: int) -> bool:
    return name.rsplit(".", 1)[-1] == "bias" and parameter.shape == (experts,)


def router_sha256(site: RouterSite) -> str:
    """SHA-256 over dtype-independent float32 bytes of the router's weight, bias and choice bias."""
    digest = hashlib.sha256()
    for tensor in (site.weight, site.bias, site.choice_bias):
        if tensor is None:
            digest.update(b"-")
        else:
            values = tensor.detach().to("cpu", torch.float32).contiguous()
            digest.update(f"{tuple(values.shape)}".encode() + values.numpy().tobytes())
    return digest.hexdigest()
