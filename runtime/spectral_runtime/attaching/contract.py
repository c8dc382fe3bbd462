"""How a family's router is called and what it answers: the common contract, and the few that differ."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

# Letters: T tokens, D hidden, E experts, K chosen.

Route = tuple[torch.Tensor, torch.Tensor]
"""Weights [T, K] and ids int64 [T, K]."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What was decided for T tokens, before it takes the family's form."""

    logits: torch.Tensor
    """[T, E]."""
    weights: torch.Tensor
    """[T, K]."""
    ids: torch.Tensor
    """int64 [T, K]."""


@dataclass(frozen=True, slots=True)
class Contract:
    """The form of one family's routers; `module` is the router, `block` the module that owns it."""

    gate_input: Callable[[nn.Module, torch.Tensor], torch.Tensor]
    """(module, hidden [..., D]) to what the linear gate multiplies, [T, D]."""
    read: Callable[[nn.Module, nn.Module, Any], Route | None]
    """(module, block, output) to the route; None when the output has not this form."""
    form: Callable[[nn.Module, Answer], Any]
    """(module, answer) to the output that the block expects."""


def flat(_: nn.Module, hidden: torch.Tensor) -> torch.Tensor:
    """Tokens as rows [T, D]: nearly every family multiplies the block's input as it is."""
    return hidden.reshape(-1, hidden.shape[-1])


def read_triple(_: nn.Module, __: nn.Module, output: Any) -> Route | None:
    """(logits, weights, ids): what 9 of 10 families return."""
    whole = isinstance(output, tuple) and len(output) == 3 and all(torch.is_tensor(x) for x in output)
    if not whole or output[1].shape != output[2].shape or output[2].dtype != torch.int64:
        return None
    return output[1], output[2]


def form_triple(_: nn.Module, answer: Answer) -> Any:
    """(logits, weights, ids)."""
    return answer.logits, answer.weights, answer.ids


STANDARD = Contract(flat, read_triple, form_triple)


def normed(module: Any, hidden: torch.Tensor) -> torch.Tensor:
    """Gemma 4: the gate multiplies a normalised, scaled copy of the residual stream."""
    return flat(module, module.norm(hidden) * module.scale * module.scalar_root_size)


def form_probabilities(module: Any, answer: Answer) -> Any:
    """Gemma 4: records probabilities, and scales every expert's weight."""
    probabilities = nn.functional.softmax(answer.logits, dim=-1, dtype=torch.float32)
    return probabilities, answer.weights * module.per_expert_scale[answer.ids], answer.ids


def read_scores(module: Any, _: nn.Module, output: Any) -> Route:
    """Llama 4: (scores [T, E], logits), scores zero where not chosen."""
    ids = torch.topk(output[1], module.top_k, dim=1)[1]
    return output[0].gather(1, ids), ids


def form_scores(_: nn.Module, answer: Answer) -> Any:
    """Llama 4: dense scores, and the logits."""
    scores = torch.zeros_like(answer.logits, dtype=answer.weights.dtype)
    return scores.scatter(1, answer.ids, answer.weights), answer.logits


def read_sorted(module: Any, _: nn.Module, output: Any) -> Route:
    """JetMoe: (order, tokens, weights, sizes, logits), rows sorted by expert."""
    order, _tokens, gates, sizes, _logits = output
    experts = torch.arange(module.num_experts, device=order.device)
    sizes = torch.tensor(sizes, device=order.device)
    ids = torch.empty_like(order).scatter_(0, order, experts.repeat_interleave(sizes))
    weights = torch.empty_like(gates).scatter_(0, order, gates)
    return weights.view(-1, module.top_k), ids.view(-1, module.top_k)


def form_sorted(module: Any, answer: Answer) -> Any:
    """JetMoe: rows sorted by expert, and how many each expert has."""
    flat_ids = answer.ids.flatten()
    order = flat_ids.sort(0)[1]
    tokens = order.div(answer.ids.shape[1], rounding_mode="trunc")
    sizes = torch.bincount(flat_ids, minlength=module.num_experts).tolist()
    return order, tokens, answer.weights.flatten()[order], sizes, answer.logits


def read_by_block(_: nn.Module, block: Any, output: Any) -> Route:
    """DBRX: the router returns logits, its block chooses and weighs."""
    weights, ids = block.route_tokens_to_experts(output)
    return weights, ids


def form_logits(_: nn.Module, answer: Answer) -> Any:
    """DBRX: logits whose K largest are the chosen; the block's own rule does the rest.

    Others above the least of the chosen are lowered to just below it; weights divided by their sum do not
    notice.
    """
    least = answer.logits.gather(1, answer.ids).amin(dim=1, keepdim=True)
    below = torch.nextafter(least, torch.full_like(least, float("-inf")))
    lowered = torch.minimum(answer.logits, below)
    return lowered.scatter(1, answer.ids, answer.logits.gather(1, answer.ids))


def read_reversed(_: nn.Module, __: nn.Module, output: Any) -> Route:
    """Granite in transformers 5.17: (ids, weights, logits)."""
    return output[1], output[0]


def form_reversed(_: nn.Module, answer: Answer) -> Any:
    """(ids, weights, logits)."""
    return answer.ids, answer.weights, answer.logits


def read_pair(_: nn.Module, __: nn.Module, output: Any) -> Route:
    """LongCat in transformers 5.17: (weights, ids)."""
    return output[0], output[1]


def form_pair(_: nn.Module, answer: Answer) -> Any:
    """(weights, ids)."""
    return answer.weights, answer.ids


CONTRACTS = {
    r"(Gemma4|DiffusionGemma).*Router": Contract(normed, read_triple, form_probabilities),
    r"Llama4Router": Contract(flat, read_scores, form_scores),
    r"JetMoeTopKGating": Contract(flat, read_sorted, form_sorted),
    r"DbrxRouter": Contract(flat, read_by_block, form_logits),
}
"""Router class names to the contracts that behaviour cannot tell."""

UNRECORDED = {
    r"GraniteMoe\w*TopKRouter": Contract(flat, read_reversed, form_reversed),
    r"LongcatFlashTopkRouter": Contract(flat, read_pair, form_pair),
}
"""The same, for versions of transformers in which these classes record nothing."""

REFUSED = {
    r"Inkling(Text)?TopkRouter": "its router also weighs the shared experts",
    r"ZayaRouter": "its router is a network with a state carried from layer to layer, not a linear gate",
    r"DogeCDMoE": "its experts are chosen by product keys, which are geometric already",
    r"(NllbMoeTop2|SwitchTransformersTop1)Router": "an encoder-decoder, its experts drop tokens",
    r"Ernie4_5_VLMoe\w*": "its text and vision routers hang on one block that chooses by token type",
}
"""Recorded class names that are not converted, and why."""


def contract_of(kind: type[nn.Module], *, recorded: bool = True) -> Contract:
    """The contract of a router class, found by its name or a base's; `recorded` when its model records it."""
    known = CONTRACTS if recorded else {**UNRECORDED, **CONTRACTS}
    return next((c for name, c in known.items() if _named(kind, name)), STANDARD)


def refusal_of(kind: type[nn.Module]) -> str | None:
    """Why routers of this class are not converted, or None."""
    return next((reason for name, reason in REFUSED.items() if _named(kind, name)), None)


def _named(kind: type[nn.Module], pattern: str) -> bool:
    return any(re.fullmatch(pattern, base.__name__) for base in kind.__mro__)
