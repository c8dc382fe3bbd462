"""The one file that touches transformers' undocumented loading code: an empty model, and its tensors on demand."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from spectral_convert.stream.quantised import Quantised
from spectral_convert.stream.shards import Stored
from spectral_runtime.attaching.load import model_class
from spectral_runtime.errors import ModelError

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn,
}  # fmt: skip


ALIGNMENT = 64
"""Bytes; what torch aligns new tensors to."""


def empty_model(config: Any, dtype: torch.dtype) -> Any:
    """A model in evaluation mode whose parameters hold nothing; its buffers are real."""
    with _empty_parameters():
        return model_class(config).from_config(config, dtype=dtype).eval()


@contextlib.contextmanager
def _empty_parameters() -> Iterator[None]:
    """Parameters move to the meta device when they are registered: nothing is written to them, so none takes memory."""
    register = nn.Module.register_parameter

    def register_empty(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        register(module, name, parameter)
        if parameter is not None and parameter.device.type != "meta":
            settings = {"requires_grad": parameter.requires_grad}
            module._parameters[name] = nn.Parameter(parameter.to("meta"), **settings)

    nn.Module.register_parameter = register_empty  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


class FileSlice:
    """A tensor of a shard as the library's loader asks for it; read, not mapped, so that no page stays resident."""

    def __init__(self, stored: Stored | Quantised, dtype: torch.dtype) -> None:
        self.stored, self.dtype = stored, dtype

    def __getitem__(self, index: Any) -> torch.Tensor:
        stored = self.stored
        if isinstance(stored, Stored):
            return _read(stored)[index]
        return stored.widen(_read(stored.packed), _read(stored.scale), self.dtype)[index]

    def get_shape(self) -> list[int]:
        """Sizes, as safetensors gives them."""
        return list(self.stored.shape)

    def get_dtype(self) -> str:
        """The dtype's name in the file."""
        kinds = {dtype: name for name, dtype in DTYPES.items()}
        return self.stored.dtype if isinstance(self.stored, Stored) else kinds[self.dtype]


def _read(stored: Stored) -> torch.Tensor:
    # As far from an aligned address as in a mapped file: the last bits of some sums depend on it.
    shift = stored.offset % ALIGNMENT
    data = torch.empty(stored.bytes + shift, dtype=torch.uint8)[shift:]
    with stored.file.open("rb", buffering=0) as file:
        file.seek(stored.offset)
        view = memoryview(data.numpy().data)
        while view and (count := file.readinto(view)):
            view = view[count:]
    if view:
        expected = f"{stored.bytes} bytes at {stored.offset}"
        raise ModelError(str(stored.file), expected=expected, found=f"{len(view)} fewer")
    return data.view(DTYPES[stored.dtype]).view(stored.shape)


class Loader:
    """Fills parts of an empty model from shards through the library's own renaming and conversion."""

    def __init__(
        self, model: Any, stored: Mapping[str, Stored | Quantised], dtype: torch.dtype, device: str
    ) -> None:
        self.model, self.stored, self.dtype, self.device = model, stored, dtype, device
        self.sources = self._sources()

    def _sources(self) -> dict[str, list[str]]:
        """In-memory name to the checkpoint keys it is made of; keys that lead nowhere (MTP layers) are left out."""
        from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

        mapping = self._mapping()
        renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
        converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
        known, prefix = self.model.state_dict(), self.model.base_model_prefix
        sources: dict[str, list[str]] = {}
        for key in sorted(self.stored):
            name, _ = rename_source_key(key, renamings, converters, prefix, known)
            if name not in known and key in known:
                name, _ = rename_source_key(key, [], [], prefix, known)
            if name in known:
                sources.setdefault(name, []).append(key)
        return sources

    def _mapping(self) -> list[Any]:
        from transformers.conversion_mapping import get_model_conversion_mapping

        found: list[Any] = get_model_conversion_mapping(self.model) or []
        return found

    def load(self, names: Iterable[str]) -> None:
        """Fills the named parameters and buffers.

        Raises:
            ModelError: when a conversion fails or a shape differs.
        """
        from transformers.core_model_loading import convert_and_load_state_dict_in_model
        from transformers.modeling_utils import LoadStateDictConfig

        keys = [key for name in names for key in self.sources.get(name, [])]
        config = LoadStateDictConfig(
            device_map={"": torch.device(self.device)},
            dtype=self.dtype,
            dtype_plan=self.model._get_dtype_plan(self.dtype),
            weight_mapping=self._mapping(),
        )
        slices = {key: FileSlice(self.stored[key], self.dtype) for key in keys}
        with _one_at_a_time():
            found = convert_and_load_state_dict_in_model(self.model, slices, config)
        info = found[0] if isinstance(found, tuple) else found
        if info.conversion_errors or info.mismatched_keys:
            trouble = str(info.conversion_errors or info.mismatched_keys)[:300]
            raise ModelError("checkpoint", expected="tensors that fit the configuration", found=trouble)

    def drop(self, names: Iterable[str]) -> None:
        """Gives the memory of the named parameters back."""
        for name in names:
            owner, _, leaf = name.rpartition(".")
            module = self.model.get_submodule(owner)
            parameter = module._parameters.get(leaf)
            if parameter is not None:
                module._parameters[leaf] = nn.Parameter(parameter.to("meta"), requires_grad=False)


@contextlib.contextmanager
def _one_at_a_time() -> Iterator[None]:
    """The library reads with several threads unless told not to, and then holds a layer twice."""
    name = "HF_DEACTIVATE_ASYNC_LOAD"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
