"""The bundle format: what a converted model is on disk, how it is read, checked and written."""

from spectral_runtime.bundle.contents import Bundle, LayerTensors
from spectral_runtime.bundle.manifest import (
    FORMAT_VERSION,
    BaseModel,
    Certificate,
    FileEntry,
    LayerEntry,
    Manifest,
    Mode,
    Split,
    routers_digest,
)
from spectral_runtime.bundle.reader import load_bundle
from spectral_runtime.bundle.tensors import TENSORS
from spectral_runtime.bundle.writer import check_target, write_bundle

__all__ = [
    "FORMAT_VERSION",
    "TENSORS",
    "BaseModel",
    "Bundle",
    "Certificate",
    "FileEntry",
    "LayerEntry",
    "LayerTensors",
    "Manifest",
    "Mode",
    "Split",
    "check_target",
    "load_bundle",
    "routers_digest",
    "write_bundle",
]
