"""`load`: runs a TensorRT engine built from a bundle, its plugin registered and its record checked first."""

from __future__ import annotations

import ctypes
import hashlib
import importlib
import importlib.util
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spectral_runtime.errors import BackendUnavailable, BundleError, ConfigError

OLDEST = (10, 15)
"""The first TensorRT whose ONNX parser prefers our plugin and falls back to the function."""
LIBRARY = "libspectral_trt.so"
RECORD_FORMAT = 1
BINDINGS = ("tensorrt", "tensorrt_lean_bindings", "tensorrt_dispatch_bindings")
"""Python modules that can run engines, the full one first."""


def library_path() -> Path:
    """Where the TensorRT plugin lies.

    Raises:
        BackendUnavailable: this installation was built without it.
    """
    folders = [Path(folder) for folder in importlib.import_module("spectral_runtime").__path__]
    native = importlib.util.find_spec("spectral_runtime._native")
    if native is not None and native.origin:
        folders.append(Path(native.origin).parent)  # an editable install keeps its libraries elsewhere
    found = [folder / LIBRARY for folder in folders if (folder / LIBRARY).is_file()]
    if not found:
        remedy = "install a wheel, or build with a C++ compiler"
        raise BackendUnavailable("tensorrt", expected=LIBRARY, found="no such library", remedy=remedy)
    return found[0]


def record_path(engine: Path) -> Path:
    """The record that `spectral build-engine` writes beside an engine."""
    return engine.with_name(engine.name + ".json")


def version_of(trt: Any) -> tuple[int, int]:
    """Major and minor version of TensorRT's Python bindings."""
    major, minor = (int(part) for part in re.findall(r"\d+", str(trt.__version__))[:2])
    return major, minor


class Engine:
    """An engine and one execution context; not for use by several threads at once."""

    def __init__(self, trt: Any, runtime: Any, engine: Any, record: dict[str, Any]) -> None:
        # The runtime must outlive the engine, and both the context.
        self._trt, self._runtime, self.engine, self.record = trt, runtime, engine, record
        self.context = engine.create_execution_context()
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        self.inputs = tuple(name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT)
        self.outputs = tuple(name for name in names if name not in self.inputs)

    def run(self, tensors: Mapping[str, Any], stream: int, profile: int = 0) -> None:
        """Enqueues one call on a CUDA stream; nothing is allocated, copied or waited for.

        Args:
            tensors: contiguous device arrays with `__cuda_array_interface__` (torch, CuPy, Numba) for every input
                and output by name.
            stream: handle of a non-default stream, for example `torch.cuda.current_stream().cuda_stream`.
            profile: 0 is prefill, 1 decode, for engines of a decoder.

        Raises:
            ConfigError: a tensor is missing, or a shape lies outside the profile.
        """
        missing = [name for name in (*self.inputs, *self.outputs) if name not in tensors]
        if missing:
            raise ConfigError("engine.run", expected=f"tensor {missing[0]}", found="none of that name")
        if self.context.active_optimization_profile != profile:
            self.context.set_optimization_profile_async(profile, stream)
        for name in self.inputs:
            self._set_shape(name, tuple(tensors[name].__cuda_array_interface__["shape"]), profile)
        for name in (*self.inputs, *self.outputs):
            self.context.set_tensor_address(name, tensors[name].__cuda_array_interface__["data"][0])
        if not self.context.execute_async_v3(stream):
            raise ConfigError(
                "engine.run", expected="a call that TensorRT accepts", found="a refusal, see its log"
            )

    def _set_shape(self, name: str, shape: tuple[int, ...], profile: int) -> None:
        least, _, most = (tuple(limit) for limit in self.engine.get_tensor_profile_shape(name, profile))
        inside = len(shape) == len(least) and all(
            a <= n <= b for a, n, b in zip(least, shape, most, strict=True)
        )
        if not inside:
            remedy = "split the call, or build the engine for more (--batch, --prompt, --capacity, --tokens)"
            expected = f"shape {list(least)} to {list(most)} (profile {profile})"
            raise ConfigError(
                f"engine input {name}", expected=expected, found=str(list(shape)), remedy=remedy
            )
        self.context.set_input_shape(name, shape)


def load(engine: str | Path, *, bundle: Any = None) -> Engine:
    """Loads an engine that `spectral build-engine` made.

    Args:
        engine: its file; the record `{engine}.json` lies beside it.
        bundle: a loaded bundle that the engine must have been made from; None: any.

    Raises:
        BackendUnavailable: no TensorRT, no GPU, no plugin, or an engine for another GPU or version.
        BundleError: the engine was made from another bundle, or was changed.
    """
    path = Path(engine)
    record, plan = read_record(path), path.read_bytes()
    check_record(path, record, plan, bundle)
    require_driver()
    trt = bindings()
    registry = trt.get_plugin_registry()
    if registry.get_creator("BvhRoute", "1", "spectral") is None:
        registry.load_library(str(library_path()))
    runtime = trt.Runtime(trt.Logger(trt.Logger.WARNING))
    loaded = runtime.deserialize_cuda_engine(plan)
    if loaded is None:
        expected = "an engine for this GPU and this TensorRT"
        found = f"one that TensorRT {trt.__version__} refuses (built with {record['tensorrt']})"
        remedy = "build it again here (spectral build-engine)"
        raise BackendUnavailable(str(path), expected=expected, found=found, remedy=remedy)
    return Engine(trt, runtime, loaded, record)


def read_record(engine: Path) -> dict[str, Any]:
    """The record beside an engine.

    Raises:
        BundleError: the engine or its record is missing or unreadable.
    """
    remedy = "build it with spectral build-engine"
    for path in (engine, record_path(engine)):
        if not path.is_file():
            raise BundleError(str(path), expected="a file", found="nothing", remedy=remedy)
    try:
        record = json.loads(record_path(engine).read_text(encoding="utf-8"))
        known = isinstance(record, dict) and record.get("format") == RECORD_FORMAT
    except ValueError:
        known = False
    if not known:
        expected = f"an engine record of format {RECORD_FORMAT}"
        raise BundleError(str(record_path(engine)), expected=expected, found="another file", remedy=remedy)
    return dict(record)


def check_record(path: Path, record: dict[str, Any], plan: bytes, bundle: Any) -> None:
    """Raises BundleError unless the engine is the recorded one, and of that bundle."""
    digest = hashlib.sha256(plan).hexdigest()
    if digest != record["engine_sha256"]:
        expected = f"the recorded engine ({record['engine_sha256'][:12]})"
        raise BundleError(str(path), expected=expected, found=digest[:12], remedy="build it again")
    if bundle is None:
        return
    wanted = bundle.manifest.base_model.routers_sha256
    if wanted != record["routers_sha256"]:
        remedy = "build an engine from this bundle"
        found = f"one from {record['routers_sha256'][:12]}"
        raise BundleError(
            str(path), expected=f"an engine from routers {wanted[:12]}", found=found, remedy=remedy
        )


def require_driver() -> None:
    """Raises BackendUnavailable without an NVIDIA driver: TensorRT would crash instead of saying so."""
    try:
        status = ctypes.CDLL("libcuda.so.1").cuInit(0)
    except OSError:
        status = -1
    if status != 0:
        found = "no driver" if status < 0 else f"cuInit error {status}"
        raise BackendUnavailable("tensorrt", expected="an NVIDIA GPU and its driver", found=found)


def bindings() -> Any:
    """The first module of `BINDINGS` that is installed.

    Raises:
        BackendUnavailable: none of them is.
    """
    for name in BINDINGS:
        if importlib.util.find_spec(name) is not None:
            return importlib.import_module(name)
    remedy = "pip install tensorrt, or tensorrt_lean for version-compatible engines"
    raise BackendUnavailable("tensorrt", expected="TensorRT's Python bindings", found="none", remedy=remedy)
