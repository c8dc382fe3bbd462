"""Builds a TensorRT engine from a bundle: ONNX export, parser, plugin, profiles, timing cache; or says the command."""

from __future__ import annotations

import hashlib
import importlib
import json
import logging
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from spectral_convert.export import export_bundle
from spectral_runtime.bundle.manifest import Mode
from spectral_runtime.errors import BackendUnavailable, ConfigError, ModelError
from spectral_runtime.tensorrt import OLDEST, RECORD_FORMAT, library_path, record_path, version_of

logger = logging.getLogger(__name__)

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Profile:
    """The smallest, usual and largest shape of every input of one optimisation profile."""

    shapes: dict[str, tuple[Shape, Shape, Shape]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What an engine must be able to take."""

    batch: int = 1
    prompt: int = 1024
    """Tokens of one prefill call."""
    capacity: int = 2048
    """Tokens that the caches hold."""
    tokens: int = 4096
    """Rows of one call, for routers alone."""


def build_engine(
    bundle: str | Path,
    *,
    out: str | Path,
    what: Literal["routers", "model"] = "model",
    base: str | None = None,
    mode: Mode | None = None,
    candidates: int | None = None,
    dtype: str = "float16",
    cache: Literal["scatter", "concat"] = "scatter",
    experts: Literal["dense", "gather", "trt_moe"] = "dense",
    batch: int = 1,
    prompt: int = 1024,
    capacity: int = 2048,
    tokens: int = 4096,
    version_compatible: bool = False,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Writes `out` (an engine), its record beside it and the ONNX model it was built from; returns the record.

    Args:
        bundle: folder or hub id.
        out: the engine file; `{out}.onnx/` holds the model, `{out}.cache` the timing cache, which is kept.
        what: routers alone, or the decoder.
        base: where the base model lies now.
        mode: one mode for all layers.
        candidates: C of `prefilter`.
        dtype: of weights and activations.
        cache: form of the KV cache.
        experts: how experts are computed.
        batch: largest batch of the decoder.
        prompt: largest number of tokens in a call of the decoder.
        capacity: tokens that the caches hold.
        tokens: largest number of rows, for routers.
        version_compatible: runs on later TensorRT versions; the plugin travels inside the engine.
        overwrite: replace an earlier engine.

    Raises:
        BackendUnavailable: TensorRT with its builder is not installed; the message ends with a `trtexec` line that
            does the same with the ONNX model, which has been written.
        ModelError: TensorRT refuses the model.
    """
    target = Path(out).expanduser().resolve()
    if target.exists() and not overwrite:
        remedy = "give another file, or overwrite it (--overwrite)"
        raise ConfigError(str(target), expected="a new file", found="one that exists", remedy=remedy)
    folder = target.with_name(target.name + ".onnx")
    record = export_bundle(
        bundle, out=folder, what=what, base=base, mode=mode, candidates=candidates, dtype=dtype, cache=cache,
        experts=experts, overwrite=True,
    )  # fmt: skip
    limits = Limits(batch=batch, prompt=prompt, capacity=capacity, tokens=tokens)
    profiles = profiles_of(record, limits, hidden_sizes(folder) if what == "routers" else ())
    model = folder / ("routers.onnx" if what == "routers" else "model.onnx")
    line = trtexec_line(model, target, profiles, version_compatible)
    library = _tensorrt(line)
    plan = _build(library, model, target.with_name(target.name + ".cache"), profiles, version_compatible)
    return {**_write(library, target, plan, record, profiles), "path": str(target), "trtexec": line}


def hidden_sizes(folder: Path) -> tuple[int, ...]:
    """D of every router of an exported `routers.onnx`."""
    import onnx

    graph = onnx.load(folder / "routers.onnx", load_external_data=False).graph
    return tuple(value.type.tensor_type.shape.dim[1].dim_value for value in graph.input)


def profiles_of(record: dict[str, Any], limits: Limits, widths: Sequence[int] = ()) -> tuple[Profile, ...]:
    """One profile for routers; for the decoder one of prompts and one of single tokens."""
    if record["what"] == "routers":
        names = [f"hidden.{i}" for i in range(len(widths))] if len(widths) > 1 else ["hidden"]
        middle = min(256, limits.tokens)
        rows: dict[str, tuple[Shape, Shape, Shape]] = {
            n: ((1, w), (middle, w), (limits.tokens, w)) for n, w in zip(names, widths, strict=True)
        }
        return (Profile(rows),)
    return tuple(_decoder_profile(record, limits, steps) for steps in (limits.prompt, 1))


def _decoder_profile(record: dict[str, Any], limits: Limits, steps: int) -> Profile:
    batch, least = limits.batch, 1
    usual = max(1, steps // 4)
    shapes: dict[str, tuple[Shape, Shape, Shape]] = {
        "input_ids": ((least, 1), (batch, usual), (batch, steps)),
    }
    static = record["cache"] == "scatter"
    if static:
        shapes["start"] = ((least,), (batch,), (batch,))
    low, high = (limits.capacity, limits.capacity) if static else (0, limits.capacity)
    for layer, cache in enumerate(record["caches"]):
        for part in ("key", "value"):
            heads, width = cache[part]
            small, large = (least, heads, low, width), (batch, heads, high, width)
            shapes[f"past.{layer}.{part}"] = (small, (batch, heads, max(low, high // 2), width), large)
    return Profile(shapes)


def trtexec_line(model: Path, engine: Path, profiles: Sequence[Profile], version_compatible: bool) -> str:
    """The command that builds the same engine with NVIDIA's own tool."""
    library = str(_library_or_name())
    words = ["trtexec", f"--onnx={model}", "--stronglyTyped", f"--dynamicPlugins={library}"]
    if version_compatible:
        words += ["--versionCompatible", "--excludeLeanRuntime", f"--setPluginsToSerialize={library}"]
    for number, profile in enumerate(profiles):
        words += [f"--profile={number}"] if len(profiles) > 1 else []
        for kind, index in (("min", 0), ("opt", 1), ("max", 2)):
            parts = [f"{name}:{'x'.join(map(str, s[index]))}" for name, s in profile.shapes.items()]
            words.append(f"--{kind}Shapes={','.join(parts)}")
    words += [f"--timingCacheFile={engine}.cache", f"--saveEngine={engine}"]
    return shlex.join(words)


def _library_or_name() -> Path:
    try:
        return library_path()
    except BackendUnavailable:
        return Path("libspectral_trt.so")


def _tensorrt(line: str) -> Any:
    """The full TensorRT bindings, the plugin registered."""
    wanted = ".".join(map(str, OLDEST))
    remedy = f"pip install tensorrt, or run where it is installed: {line}"
    try:
        trt: Any = importlib.import_module("tensorrt")
    except ImportError as error:
        raise BackendUnavailable(
            "build-engine", expected="tensorrt", found=str(error), remedy=remedy
        ) from error
    if version_of(trt) < OLDEST or not hasattr(trt, "Builder"):
        raise BackendUnavailable(
            "build-engine", expected=f"{wanted} or newer", found=trt.__version__, remedy=remedy
        )
    trt.get_plugin_registry().load_library(str(library_path()))
    return trt


def _build(
    trt: Any, model: Path, cache: Path, profiles: Sequence[Profile], version_compatible: bool
) -> bytes:
    log = trt.Logger(trt.Logger.WARNING)
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(str(model)):
        reasons = "; ".join(str(parser.get_error(i)) for i in range(min(3, parser.num_errors)))
        raise ModelError(str(model), expected="a model that TensorRT parses", found=reasons)
    config = builder.create_builder_config()
    for profile in profiles:
        made = builder.create_optimization_profile()
        for name, (least, usual, most) in profile.shapes.items():
            made.set_shape(name, least, usual, most)
        config.add_optimization_profile(made)
    if version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
        config.set_flag(trt.BuilderFlag.EXCLUDE_LEAN_RUNTIME)
        config.plugins_to_serialize = [str(library_path())]
    timings = config.create_timing_cache(cache.read_bytes() if cache.is_file() else b"")
    config.set_timing_cache(timings, False)
    monitor = progress_monitor(trt)
    config.progress_monitor = monitor
    plan = builder.build_serialized_network(network, config)
    monitor.close()
    if plan is None:
        raise ModelError(str(model), expected="an engine", found="none: see TensorRT's own messages above")
    cache.write_bytes(bytes(config.get_timing_cache().serialize()))
    return bytes(plan)


def progress_monitor(trt: Any) -> Any:
    """TensorRT's progress as bars, one a phase."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.bars: dict[str, tqdm[Any]] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:  # noqa: ARG002
            self.bars[phase_name] = tqdm(total=num_steps, desc=phase_name, leave=False)

        def step_complete(self, phase_name: str, step: int) -> bool:
            bar = self.bars[phase_name]
            bar.update(step + 1 - bar.n)
            return True

        def phase_finish(self, phase_name: str) -> None:
            self.bars.pop(phase_name).close()

        def close(self) -> None:
            while self.bars:
                self.bars.popitem()[1].close()

    return Monitor()


def _write(
    trt: Any, target: Path, plan: bytes, record: dict[str, Any], profiles: Sequence[Profile]
) -> dict[str, Any]:
    """The engine by a sibling and a rename, then what `load` checks it against."""
    sibling = target.with_name(f".{target.name}.partial")
    sibling.write_bytes(plan)
    sibling.replace(target)
    written = {
        "format": RECORD_FORMAT,
        "engine_sha256": hashlib.sha256(plan).hexdigest(),
        "tensorrt": trt.__version__,
        "routers_sha256": record["routers_sha256"],
        "base_model": record["base_model"],
        "what": record["what"],
        "layers": record["layers"],
        "profiles": [asdict(profile)["shapes"] for profile in profiles],
    }
    record_path(target).write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")
    return written
