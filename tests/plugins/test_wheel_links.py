"""The extension module needs no NVIDIA, torch or ONNX Runtime library, so one wheel serves every machine."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest

native = pytest.importorskip("spectral_runtime._native", reason="the native core is not built")
readelf = shutil.which("readelf")


@pytest.mark.skipif(readelf is None, reason="readelf is not installed")
def test_needed_libraries() -> None:
    out = subprocess.run(
        [str(readelf), "-d", native.__file__], capture_output=True, text=True, check=True
    ).stdout
    needed = re.findall(r"\(NEEDED\).*\[(.*)\]", out)
    assert needed, "readelf found no NEEDED entry: this test proves nothing"
    forbidden = [name for name in needed if re.search(r"cuda|cudart|nvoptix|nvinfer|torch|onnxruntime", name)]
    assert not forbidden
