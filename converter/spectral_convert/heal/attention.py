"""Plain causal attention while healing: windows hold no padding, so no mask is made and nothing is asked of the device."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from spectral_convert.heal.mixed import replaced

NAME = "spectral_causal"


def _attention(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, _: Any, **options: Any
) -> Any:
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    return sdpa_attention_forward(module, query, key, value, None, **options)


def plainly_causal(model: Any) -> bool:
    """Whether every layer attends to all tokens before, by torch's own attention."""
    config = model.config.get_text_config()
    kinds = getattr(config, "layer_types", None) or ["full_attention"]
    windowed = getattr(config, "sliding_window", None) is not None or set(kinds) != {"full_attention"}
    return model.config._attn_implementation == "sdpa" and not windowed


@contextmanager
def maskless(models: Sequence[Any]) -> Iterator[None]:
    """The models without masks, where they need none; transformers makes none for attention of an unknown name.

    Its own search for packed documents reads a value from the device in every forward, which waits for all work before.
    """
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS.register(NAME, _attention)
    configs = [config for model in models if plainly_causal(model) for config in _configs(model)]
    with replaced(configs, "_attn_implementation", NAME):
        yield


def _configs(model: Any) -> list[Any]:
    return [model.config, model.config.get_text_config()]
