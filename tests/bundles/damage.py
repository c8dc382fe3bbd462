"""A bundle taken apart so that one thing in it can be broken, and the register of the damages."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from pico_bundles import Arithmetic, make_bundle

from spectral_runtime.bundle import LayerTensors, Manifest
from spectral_runtime.bundle.container import encode
from spectral_runtime.bundle.contents import arrays_of, tensor_name
from spectral_runtime.bundle.writer import METADATA

TENSORS, CONFIG = "spectral.safetensors", "spectral_config.json"


@dataclass
class Draft:
    """The header and data of a tensor file, and the manifest as plain JSON."""

    header: dict[str, Any]
    data: bytearray
    manifest: dict[str, Any]
    file: bytes | None = None
    """Given, the tensor file is this, whatever header and data say."""
    config: bytes | None = None
    """Given, the manifest file is this."""
    honest: bool = True
    """Whether size and digest in the manifest are made true again, so that the rule itself has to refuse."""

    @property
    def layer(self) -> dict[str, Any]:
        return self.manifest["layers"][0]

    def array(self, name: str) -> np.ndarray:
        """A writable view of a tensor of layer 0."""
        entry = self.header[tensor_name(0, name)]
        begin, end = entry["data_offsets"]
        dtype = {"F32": np.float32, "I32": np.int32}[entry["dtype"]]
        return np.frombuffer(self.data, np.uint8)[begin:end].view(dtype).reshape(entry["shape"])

    def use_header(self, text: bytes) -> None:
        """Makes the tensor file of this header text, which says its own length, and the data."""
        self.file = len(text).to_bytes(8, "little") + text + bytes(self.data)

    def header_text(self) -> bytes:
        text = json.dumps(self.header, separators=(",", ":")).encode()
        return text + b" " * (-len(text) % 8)

    def files(self) -> dict[str, bytes]:
        """The two files of the folder."""
        text = self.header_text()
        content = self.file or len(text).to_bytes(8, "little") + text + bytes(self.data)
        manifest = copy.deepcopy(self.manifest)
        if self.honest and TENSORS in manifest["files"]:
            manifest["files"][TENSORS] = {
                "bytes": len(content),
                "sha256": hashlib.sha256(content).hexdigest(),
            }
        config = self.config or (json.dumps(manifest, indent=1, sort_keys=True) + "\n").encode()
        return {TENSORS: content, CONFIG: config}

    def write(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in self.files().items():
            (folder / name).write_bytes(content)


def take_apart(content: bytes, config: bytes) -> Draft:
    """The draft of two files."""
    start = 8 + int.from_bytes(content[:8], "little")
    return Draft(json.loads(content[8:start]), bytearray(content[start:]), json.loads(config))


def draft_of(manifest: Manifest, layers: tuple[LayerTensors, ...]) -> Draft:
    """The draft of values in memory, which nothing has validated."""
    arrays = {tensor_name(i, k): v for i, layer in enumerate(layers) for k, v in arrays_of(layer).items()}
    content = b"".join(encode(arrays, METADATA))
    entry = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    plain = dataclasses.asdict(manifest) | {"files": {TENSORS: entry}}
    return take_apart(content, json.dumps(plain).encode())


@cache
def _sound() -> tuple[bytes, bytes]:
    rule = {"score": "sigmoid", "choice_bias": True}
    files = draft_of(*make_bundle(Arithmetic(), hidden=4, levels=1, colour=2, rule=rule)).files()
    return files[TENSORS], files[CONFIG]


def sound_draft() -> Draft:
    """One sound `prefilter` layer of 8 experts, K = 2, D = 4, L = 1, S = 2, with a choice bias."""
    return take_apart(*_sound())


Damage = Callable[[Draft], None]
RULES: dict[str, tuple[str, Damage]] = {}
"""Name of the hostile folder to the pattern its message must match, and the function that does it."""


def refused(match: str) -> Callable[[Damage], Damage]:
    """Registers a function as a way to break a bundle that must be refused with such a message."""

    def register(damage: Damage) -> Damage:
        RULES[damage.__name__] = (match, damage)
        return damage

    return register
