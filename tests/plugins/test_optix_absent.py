"""Without OptiX its back-end is a reason, not a crash; the declarations are NVIDIA's where its headers are given."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from gpu_worlds import make_geometry

from spectral_runtime import backends
from spectral_runtime.errors import BackendUnavailable
from spectral_runtime.gate import GateRule
from spectral_runtime.router import Router

ROOT = Path(__file__).parents[2]


def reason_with(**libraries: str) -> str:
    """What a fresh process says with these libraries in place of the driver's."""
    code = "from spectral_runtime import backends; print(backends.unavailable('optix'))"
    environment = {**os.environ, **libraries}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_without_a_driver_the_reason_is_that_of_cuda():
    reason = reason_with(SPECTRAL_LIBCUDA="libnowhere.so.7")
    assert "libnowhere.so.7" in reason or "no CUDA kernels" in reason


def test_a_driver_without_optix_is_a_reason_that_names_the_library():
    if backends.unavailable("cuda") is not None:
        pytest.skip("needs an NVIDIA driver to get that far")
    assert "libnowhere.so.7" in reason_with(SPECTRAL_LIBNVOPTIX="libnowhere.so.7")
    assert "no optixQueryFunctionTable" in reason_with(SPECTRAL_LIBNVOPTIX="libm.so.6")


def test_asking_for_optix_without_a_gpu_is_refused_with_the_reason(rng):
    if backends.unavailable("optix") is None:
        pytest.skip("this machine has OptiX")
    with pytest.raises(BackendUnavailable, match=r"backend 'optix'.*(driver|kernels)"):
        Router(make_geometry(rng, 8), GateRule(experts=8, top_k=2), backend="optix")


HEADERS = [folder for folder in os.environ.get("SPECTRAL_OPTIX_FOLDERS", "").split(":") if folder]
"""Include folders of OptiX 7.7 to 9.0, and after a '+' one of CUDA, which it wants."""


@pytest.mark.skipif(not HEADERS, reason="SPECTRAL_OPTIX_FOLDERS names no headers of OptiX")
@pytest.mark.parametrize("folder", HEADERS)
def test_declarations_are_those_of_the_headers(folder):
    compiler = shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    options = [part for place in folder.split("+") for part in ("-isystem", place)]
    source = ROOT / "plugins" / "optix" / "abi_check.cpp"
    command = [compiler, "-std=c++20", "-fsyntax-only", *options, str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
