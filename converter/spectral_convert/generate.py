"""Generate: continues a prompt with the converted model and, for comparison, with the untouched one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from spectral_runtime.attaching import attach
from spectral_runtime.attaching.load import load_base_of
from spectral_runtime.bundle import Bundle, load_bundle
from spectral_runtime.bundle.manifest import Mode


@dataclass(frozen=True, slots=True)
class Generation:
    """One prompt continued twice."""

    prompt: str
    base: str
    converted: str
    same_tokens: int
    """How many greedy tokens agree before the first difference."""


def generate_text(
    bundle: str | Path,
    *,
    prompt: str,
    base: str | None = None,
    mode: Mode | None = None,
    candidates: int | None = None,
    max_new_tokens: int = 64,
    dtype: str = "float32",
    device: str = "cpu",
) -> Generation:
    """Greedy continuations of a prompt, untouched and converted.

    Args:
        bundle: folder or hub id.
        prompt: text to continue.
        base: where the base model lies now; None: where the bundle says.
        mode: overrides the layers' modes.
        candidates: overrides C.
        max_new_tokens: length of the continuation.
        dtype: torch dtype.
        device: torch device.
    """
    loaded = load_bundle(bundle)
    model, tokenizer = load_base_of(loaded, base, dtype=dtype, device=device)
    return continue_prompt(
        model, tokenizer, loaded, prompt, mode=mode, candidates=candidates, max_new_tokens=max_new_tokens
    )


def continue_prompt(
    model: Any,
    tokenizer: Any,
    bundle: Bundle,
    prompt: str,
    *,
    mode: Mode | None = None,
    candidates: int | None = None,
    max_new_tokens: int = 64,
) -> Generation:
    """`generate_text` with a loaded model that has no routers attached."""
    plain = _greedy(model, tokenizer, prompt, max_new_tokens)
    with attach(model, bundle, mode, candidates=candidates):
        converted = _greedy(model, tokenizer, prompt, max_new_tokens)
    same = 0
    while same < min(len(plain), len(converted)) and plain[same] == converted[same]:
        same += 1
    return Generation(prompt, tokenizer.decode(plain), tokenizer.decode(converted), same)


def _greedy(model: Any, tokenizer: Any, prompt: str, count: int) -> list[int]:
    inputs = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False).to(model.device)
    with torch.inference_mode():
        output = model.generate(**inputs, max_new_tokens=count, do_sample=False)
    return [int(token) for token in output[0, inputs["input_ids"].shape[1] :]]
