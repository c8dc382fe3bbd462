"""The TensorRT plugin through a small compiled harness: what the builder and the runtime would call."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
TYPES = {"float32": 0, "float16": 1, "bfloat16": 7, "int32": 3}
INPUTS = 12
BUILD, RUNTIME = 0, 1


class Field(ctypes.Structure):
    """PluginField."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("data", ctypes.c_void_p),
        ("type", ctypes.c_int32),
        ("length", ctypes.c_int32),
    )


class Fields(ctypes.Structure):
    """PluginFieldCollection."""

    _fields_ = (("count", ctypes.c_int32), ("fields", ctypes.POINTER(Field)))


def compile_harness(folder: Path) -> Any | None:
    """The harness as a ctypes library, or None without a C++ compiler."""
    compiler = shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        return None
    library = folder / "harness.so"
    source = ROOT / "tests" / "plugins" / "tensorrt_harness.cpp"
    options = ["-std=c++20", "-shared", "-fPIC", "-I", str(ROOT / "plugins" / "tensorrt")]
    subprocess.run([compiler, *options, str(source), "-o", str(library), "-ldl"], check=True)
    return loaded_harness(library)


def loaded_harness(library: Path) -> Any:
    """A compiled harness with the types of what its functions return."""
    loaded = ctypes.CDLL(str(library))
    for name in ("open_creator", "create", "clone_of", "attach_to"):
        getattr(loaded, name).restype = ctypes.c_void_p
    for name in ("creator_kind", "kind_of", "name_of", "timing_id"):
        getattr(loaded, name).restype = ctypes.c_char_p
    for name in ("serialised", "field_names"):
        getattr(loaded, name).restype = ctypes.POINTER(Fields)
    loaded.output_width.restype = ctypes.c_int64
    loaded.workspace_bytes.restype = ctypes.c_size_t
    return loaded


def fields_of(attributes: dict[str, Any]) -> tuple[Fields, list[Any]]:
    """Attributes as TensorRT's ONNX parser hands them over, and what must be kept alive with them."""
    kept: list[Any] = []
    made = (Field * len(attributes))()
    for field, (name, value) in zip(made, attributes.items(), strict=True):
        if isinstance(value, str):
            data: Any = ctypes.create_string_buffer(value.encode(), len(value))
            kind, length = 6, len(value)
        elif isinstance(value, float):
            data, kind, length = ctypes.c_float(value), 1, 1
        else:
            data, kind, length = ctypes.c_int32(value), 5, 1
        kept.append(data)
        field.name, field.data = name.encode(), ctypes.cast(ctypes.byref(data), ctypes.c_void_p)
        field.type, field.length = kind, length
    kept.append(made)
    return Fields(len(attributes), made), kept


class Plugin:
    """One plugin object; destroyed with this one."""

    def __init__(self, calls: Any, handle: int) -> None:
        self.calls, self.handle = calls, ctypes.c_void_p(handle)

    def __del__(self) -> None:
        self.calls.destroy(self.handle)

    def attached(self) -> Plugin:
        """The clone of an execution context."""
        return Plugin(self.calls, self.calls.attach_to(self.handle))

    def types(self, states: str) -> Any:
        """Types of all inputs and outputs for hidden states of that type, the outputs as the plugin says."""
        kinds = [TYPES["float32"]] * INPUTS + [0, 0]
        kinds[0] = kinds[6] = kinds[7] = TYPES[states]
        kinds[9:12] = [TYPES["int32"]] * 3
        array = (ctypes.c_int * (INPUTS + 2))(*kinds)
        assert self.calls.output_types(self.handle, array) == 0
        return array

    def serial(self) -> Any:
        """What would be written into an engine."""
        return self.calls.serialised(self.handle)


def make(calls: Any, creator: int, attributes: dict[str, Any]) -> Plugin | None:
    """A plugin of the build phase, or None when the creator refuses."""
    fields, _kept = fields_of(attributes)
    handle = calls.create(ctypes.c_void_p(creator), ctypes.byref(fields), BUILD)
    return Plugin(calls, handle) if handle else None


def revive(calls: Any, creator: int, fields: Any) -> Plugin | None:
    """A plugin of the runtime phase, from serialised fields."""
    handle = calls.create(ctypes.c_void_p(creator), fields, RUNTIME)
    return Plugin(calls, handle) if handle else None
