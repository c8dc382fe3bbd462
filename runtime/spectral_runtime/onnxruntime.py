"""`register`: makes the native `spectral::BvhRoute` of this package known to an ONNX Runtime session."""

from __future__ import annotations

import importlib
import importlib.util
import re
from pathlib import Path
from typing import Any

from spectral_runtime.errors import BackendUnavailable

OLDEST = (1, 17)
"""The first ONNX Runtime whose interface the library asks for."""
LIBRARY = "libspectral_ort.so"


def library_path() -> Path:
    """Where the custom operator's library lies.

    Raises:
        BackendUnavailable: this installation was built without it.
    """
    package = importlib.import_module("spectral_runtime")
    folders = [Path(folder) for folder in package.__path__]
    native = importlib.util.find_spec("spectral_runtime._native")
    if native is not None and native.origin:
        folders.append(Path(native.origin).parent)  # an editable install keeps its libraries elsewhere
    found = [folder / LIBRARY for folder in folders if (folder / LIBRARY).is_file()]
    if not found:
        remedy = (
            "install a wheel, or build with a C++ compiler; without it the models run by their own function"
        )
        raise BackendUnavailable("onnxruntime", expected=LIBRARY, found="no such library", remedy=remedy)
    return found[0]


def register(session_options: Any) -> Any:
    """Registers the operator; models exported by `spectral export` then route natively, on CUDA where the session has it.

    Args:
        session_options: an `onnxruntime.SessionOptions`.

    Returns:
        The same object, so that the call fits into an expression.

    Raises:
        BackendUnavailable: ONNX Runtime is absent or too old, or the library is.
    """
    _check_version()
    session_options.register_custom_ops_library(str(library_path()))
    return session_options


def _check_version() -> None:
    wanted = ".".join(map(str, OLDEST))
    try:
        version = str(importlib.import_module("onnxruntime").__version__)
    except ImportError as error:
        remedy = "pip install onnxruntime"
        raise BackendUnavailable("onnxruntime", expected=wanted, found=str(error), remedy=remedy) from error
    numbers = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
    if numbers < OLDEST:
        remedy = "upgrade onnxruntime, or do without register: the model runs by its own function"
        raise BackendUnavailable("onnxruntime", expected=f"{wanted} or newer", found=version, remedy=remedy)
