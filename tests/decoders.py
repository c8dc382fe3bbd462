"""Greedy decoding, by torch and by an exported decoder in ONNX Runtime: what the export is held against."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

CAPACITY = 64


@dataclass(frozen=True)
class Decoded:
    """Logits of the prompt [B, S, V], greedy tokens [B, N], logits of those [B, N, V]."""

    prefill: np.ndarray
    tokens: np.ndarray
    decode: np.ndarray


def continued(model: Any, prompt: Any, steps: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The same three from a transformers model with its own cache."""
    import torch

    with torch.no_grad():
        output = model(input_ids=prompt, use_cache=True)
        first, tokens, logits = output.logits, [], []
        for _ in range(steps):
            tokens.append(output.logits[:, -1:].argmax(-1))
            output = model(input_ids=tokens[-1], past_key_values=output.past_key_values, use_cache=True)
            logits.append(output.logits)
    return first.numpy(), torch.cat(tokens, 1).numpy(), torch.cat(logits, 1).numpy()


def greedy(model: bytes, cache: str, caches: Sequence[Any], prompt: np.ndarray, steps: int) -> Decoded:
    """Runs an exported decoder; `cache` is its form, `caches` the heads and widths of every layer."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # TensorScatter without in-place buffers is a warning each
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    width = CAPACITY if cache == "scatter" else 0
    past: dict[str, np.ndarray] = {}
    for layer, shape in enumerate(caches):
        for part, heads, size in (("key", shape.heads, shape.key), ("value", shape.value_heads, shape.value)):
            past[f"past.{layer}.{part}"] = np.zeros((len(prompt), heads, width, size), np.float32)

    def step(tokens: np.ndarray, start: int) -> np.ndarray:
        at = {"start": np.full(len(tokens), start, np.int64)} if cache == "scatter" else {}
        found = dict(zip(names, session.run(None, {"input_ids": tokens, **at, **past}), strict=True))
        present = {name: array for name, array in found.items() if name != "logits"}
        past.update({name.replace("present", "past"): array for name, array in present.items()})
        return np.asarray(found["logits"])

    first = step(prompt, 0)
    last, tokens, logits = first, [], []
    for number in range(steps):
        tokens.append(last[:, -1:].argmax(-1))
        last = step(tokens[-1], prompt.shape[1] + number)
        logits.append(last)
    return Decoded(first, np.concatenate(tokens, 1), np.concatenate(logits, 1))
