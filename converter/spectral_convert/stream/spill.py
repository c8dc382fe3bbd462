"""Tensors that live in unnamed files instead of memory, for activations above the budget."""

from __future__ import annotations

import mmap
import tempfile
from pathlib import Path
from typing import Any

import torch


def spill(tensor: torch.Tensor, folder: Path | None = None) -> torch.Tensor:
    """A copy of a CPU tensor whose bytes are in a file that vanishes with it; the kernel brings pages back as needed."""
    size = tensor.numel() * tensor.element_size()
    if size == 0:
        return tensor
    with tempfile.TemporaryFile(dir=folder) as file:
        file.truncate(size)
        pages = mmap.mmap(file.fileno(), size)
    stored = torch.frombuffer(pages, dtype=tensor.dtype).view(tensor.shape)
    stored.copy_(tensor)
    pages.flush()
    if hasattr(mmap, "MADV_DONTNEED"):
        pages.madvise(mmap.MADV_DONTNEED)
    return stored


def spill_output(output: Any, folder: Path | None = None) -> Any:
    """A decoder layer's output with its tensors spilled: one tensor, or a tuple that starts with it."""
    if torch.is_tensor(output) and output.device.type == "cpu":
        return spill(output, folder)
    if isinstance(output, tuple) and output and torch.is_tensor(output[0]):
        return (spill_output(output[0], folder), *output[1:])
    return output
