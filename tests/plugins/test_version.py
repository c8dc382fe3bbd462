"""The native module is the one that this Python package was built with."""

from __future__ import annotations

import pytest

import spectral_runtime


def test_native_version_equals_package_version() -> None:
    native = pytest.importorskip("spectral_runtime._native", reason="the native core is not built")
    assert native.__version__ == spectral_runtime.__version__ == "0.1.0"
