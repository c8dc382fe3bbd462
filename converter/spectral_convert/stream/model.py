"""A streamed model: the whole skeleton, routers and embeddings in memory, one decoder layer at a time beside them."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from spectral_convert.stream.quantised import widened_view
from spectral_convert.stream.relay import relay, stop_before
from spectral_convert.stream.shards import read_headers, shard_files
from spectral_convert.stream.skeleton import Loader, empty_model
from spectral_convert.stream.spill import spill_output
from spectral_runtime.attaching.discovery import find_routers
from spectral_runtime.errors import ModelError

M_MMAP_THRESHOLD = -3
MAPPED_FROM = 2**20
"""Bytes; glibc's own threshold moves up to 32 MiB as experts are freed, and then keeps them in its heap."""
logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Stream:
    """What brings layers in and out of a streamed model."""

    loader: Loader
    layers: list[list[str]]
    """In-memory names of each decoder layer's tensors, without what always stays."""
    device: str
    spilling: bool = False
    folder: Path | None = None
    inside: int | None = None
    loads: int = field(default=0)
    """How many times a layer was read."""

    def enter(self, layer: int) -> None:
        """Makes a layer the one in memory."""
        if self.inside == layer:
            return
        if self.inside is not None:
            self.loader.drop(self.layers[self.inside])
            gc.collect()
        self.inside = None
        self.loader.load(self.layers[layer])
        self.inside, self.loads = layer, self.loads + 1

    def run(self, jobs: Sequence[Callable[[], Any]], resumed: Callable[[int], None]) -> Iterator[Any]:
        """Results of the jobs, each a forward of the model, in one pass over the layers."""
        yield from relay(jobs, self.enter, resumed)

    def hook(self, layers: nn.ModuleList) -> None:
        """Stops every forward before each layer, and spills what leaves it when asked to."""
        for number, module in enumerate(layers):
            module.register_forward_pre_hook(self._before(number))
            module.register_forward_hook(self._after)

    def _before(self, number: int) -> Callable[..., None]:
        def wait(*_: Any) -> None:
            if not stop_before(number):
                self.enter(number)

        return wait

    def _after(self, _: nn.Module, __: Any, output: Any) -> Any:
        return spill_output(output, self.folder) if self.spilling else None


def stream_of(model: Any) -> Stream | None:
    """The stream of a streamed model; None for one that is wholly in memory."""
    return getattr(model, "spectral_stream", None)


def open_streamed(
    folder: Path, config: Any, *, dtype: torch.dtype, device: str = "cpu", scratch: Path | None = None
) -> Any:
    """A model that reads its decoder layers from the shards as it runs; results equal a full load's, bit for bit.

    Args:
        folder: of the checkpoint.
        config: its configuration.
        dtype: of the parameters.
        device: where layers compute; one at a time moves there.
        scratch: where activations spill to.

    Raises:
        ModelError: no routers, missing shards, or weights quantised by a method that is not read here.
    """
    stored = widened_view(config, read_headers(shard_files(folder)), str(folder))
    return_freed_memory()
    model = empty_model(config, dtype)
    loader = Loader(model, stored, dtype, device)
    prefix, layers = decoder_layers(model)
    resident, streamed = partition(model, prefix, len(layers))
    model.spectral_stream = Stream(loader, streamed, device, folder=scratch)
    loader.load(resident)
    model.tie_weights()
    _refuse_missing(model, resident, folder)
    for buffered in model.modules():
        for name, buffer in buffered._buffers.items():
            if buffer is not None:
                buffered._buffers[name] = buffer.to(device)
    model.spectral_stream.hook(layers)
    return model


def return_freed_memory() -> None:
    """Makes glibc map every tensor by itself, so that memory of a dropped layer goes back at once (mallopt(3))."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, MAPPED_FROM)


def decoder_layers(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """Path and modules of the list of decoder layers: the outermost list that holds a router."""
    path = find_routers(model)[0].path.split(".")
    for length in range(1, len(path)):
        name = ".".join(path[:length])
        found = model.get_submodule(name)
        if isinstance(found, nn.ModuleList):
            return name, found
    raise ModelError(".".join(path), expected="a router inside a list of layers", found="none")


def partition(model: nn.Module, prefix: str, count: int) -> tuple[list[str], list[list[str]]]:
    """What always stays (embeddings, head, norms, buffers, routers) and what each layer brings."""
    kept = {f"{site.path}." for site in find_routers(model)}
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    resident: list[str] = []
    layers: list[list[str]] = [[] for _ in range(count)]
    for name in model.state_dict():
        inside = name.startswith(f"{prefix}.") and name in parameters
        if inside and not any(name.startswith(path) for path in kept):
            layers[int(name[len(prefix) + 1 :].split(".")[0])].append(name)
        else:
            resident.append(name)
    return resident, layers


def _refuse_missing(model: nn.Module, resident: Sequence[str], folder: Path) -> None:
    tensors = dict(model.named_parameters(remove_duplicate=False))
    missing = [name for name in resident if name in tensors and tensors[name].device.type == "meta"]
    if missing:
        found = f"{len(missing)} missing, first {missing[0]}"
        raise ModelError(
            str(folder), expected="every tensor of the model", found=found, remedy="check the shards"
        )
