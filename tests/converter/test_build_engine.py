"""`build-engine` without TensorRT, with a double of it, and its names against the real bindings where installed."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx", reason="the extra onnx is not installed")

from pico_bundles import make_bundle

from spectral_convert.export import tensorrt as stage
from spectral_runtime import tensorrt as runtime
from spectral_runtime.bundle import load_bundle, write_bundle
from spectral_runtime.errors import BackendUnavailable, BundleError, ConfigError, ModelError


@pytest.fixture
def bundle(rng: np.random.Generator, tmp_path: Path) -> Path:
    manifest, layers = make_bundle(rng, layers=2, mode="geometric")
    return write_bundle(tmp_path / "bundle", manifest, layers).path


class Double:
    """Records what the builder is asked for; its engine is a few bytes."""

    def __init__(self, parses: bool = True) -> None:
        self.flags: list[str] = []
        self.shapes: list[dict[str, Any]] = []
        self.libraries: list[str] = []
        self.parses = parses

    def module(self) -> types.ModuleType:
        outer = self

        class Network:
            pass

        class Cache:
            def serialize(self) -> bytes:
                return b"timings"

        class Profile:
            def __init__(self) -> None:
                outer.shapes.append({})

            def set_shape(self, name: str, *limits: Any) -> None:
                outer.shapes[-1][name] = limits

        class Config:
            progress_monitor: Any = None
            plugins_to_serialize: Any = None

            def add_optimization_profile(self, profile: Any) -> None: ...
            def create_timing_cache(self, data: bytes) -> Any:
                outer.flags.append(f"cache {len(data)}")
                return Cache()

            def set_timing_cache(self, cache: Any, ignore: bool) -> None: ...
            def get_timing_cache(self) -> Any:
                return Cache()

            def set_flag(self, flag: str) -> None:
                outer.flags.append(flag)

        class Builder:
            def __init__(self, log: Any) -> None: ...
            def create_network(self, flags: int) -> Any:
                return Network()

            def create_builder_config(self) -> Any:
                return Config()

            def create_optimization_profile(self) -> Any:
                return Profile()

            def build_serialized_network(self, network: Any, config: Any) -> bytes:
                monitor = config.progress_monitor
                monitor.phase_start("tactics", None, 2)
                assert monitor.step_complete("tactics", 0)
                monitor.phase_finish("tactics")
                return b"engine"

        class Parser:
            num_errors = 1

            def __init__(self, network: Any, log: Any) -> None: ...
            def parse_from_file(self, path: str) -> bool:
                assert Path(path).is_file()
                return outer.parses

            def get_error(self, index: int) -> str:
                return "opset 99 is not supported"

        module = types.ModuleType("tensorrt")
        module.__version__ = "11.4.0.106"  # type: ignore[attr-defined]
        for name, value in {
            "Builder": Builder,
            "OnnxParser": Parser,
            "IProgressMonitor": object,
            "Logger": type("Logger", (), {"WARNING": 1, "__init__": lambda self, level: None}),
            "NetworkDefinitionCreationFlag": types.SimpleNamespace(STRONGLY_TYPED=1),
            "BuilderFlag": types.SimpleNamespace(
                VERSION_COMPATIBLE="compatible", EXCLUDE_LEAN_RUNTIME="lean"
            ),
            "get_plugin_registry": lambda: types.SimpleNamespace(load_library=self.libraries.append),
        }.items():
            setattr(module, name, value)
        return module


@pytest.fixture
def double(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Double:
    made = Double()
    library = tmp_path / "libspectral_trt.so"
    library.touch()
    monkeypatch.setitem(sys.modules, "tensorrt", made.module())
    monkeypatch.setattr(stage, "library_path", lambda: library)
    return made


def test_without_tensorrt_the_line_is_said(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(
        BackendUnavailable, match=r"build-engine: expected tensorrt.*trtexec --onnx="
    ) as caught:
        stage.build_engine(bundle, out=tmp_path / "r.engine", what="routers", dtype="float32")
    assert "--maxShapes=hidden.0:4096x12,hidden.1:4096x12" in str(caught.value)
    assert (tmp_path / "r.engine.onnx" / "routers.onnx").is_file()


def test_builds_with_profile_cache_and_plugin(bundle: Path, tmp_path: Path, double: Double) -> None:
    out = tmp_path / "r.engine"
    for size in (0, 7):
        record = stage.build_engine(
            bundle,
            out=out,
            what="routers",
            dtype="float32",
            tokens=64,
            version_compatible=True,
            overwrite=True,
        )
        assert f"cache {size}" in double.flags
    assert out.read_bytes() == b"engine"
    assert double.shapes[0] == {f"hidden.{i}": ((1, 12), (64, 12), (64, 12)) for i in range(2)}
    assert {"compatible", "lean"} <= set(double.flags)
    assert double.libraries == [str(tmp_path / "libspectral_trt.so")] * 2
    assert "--versionCompatible" in record["trtexec"]
    loaded = load_bundle(bundle)
    runtime.check_record(out, runtime.read_record(out), b"engine", loaded)
    with pytest.raises(ConfigError, match=r"expected a new file, found one that exists"):
        stage.build_engine(bundle, out=out, what="routers", dtype="float32")


def test_a_model_that_does_not_parse(bundle: Path, tmp_path: Path, double: Double) -> None:
    double.parses = False
    with pytest.raises(ModelError, match=r"a model that TensorRT parses, found opset 99 is not supported"):
        stage.build_engine(bundle, out=tmp_path / "r.engine", what="routers", dtype="float32")


def test_decoder_has_a_profile_for_prompts_and_one_for_tokens() -> None:
    caches = [{"key": [4, 32], "value": [4, 16]}]
    record = {"what": "model", "cache": "scatter", "caches": caches}
    prompts, tokens = stage.profiles_of(record, stage.Limits(batch=2, prompt=128, capacity=256))
    assert prompts.shapes["input_ids"] == ((1, 1), (2, 32), (2, 128))
    assert tokens.shapes["input_ids"] == ((1, 1), (2, 1), (2, 1))
    assert tokens.shapes["past.0.value"] == ((1, 4, 256, 16), (2, 4, 256, 16), (2, 4, 256, 16))
    growing = stage.profiles_of({**record, "cache": "concat"}, stage.Limits(capacity=256))
    assert growing[1].shapes["past.0.key"] == ((1, 4, 0, 32), (1, 4, 128, 32), (1, 4, 256, 32))


def test_engines_of_other_bundles_and_changed_ones(bundle: Path, tmp_path: Path, double: Double) -> None:
    out = tmp_path / "r.engine"
    stage.build_engine(bundle, out=out, what="routers", dtype="float32")
    record = runtime.read_record(out)
    with pytest.raises(BundleError, match=r"expected the recorded engine \([0-9a-f]{12}\), found"):
        runtime.check_record(out, record, b"other", None)
    other = {**record, "routers_sha256": "f" * 64}
    with pytest.raises(
        BundleError, match=r"expected an engine from routers [0-9a-f]{12}, found one from ffff"
    ):
        runtime.check_record(out, other, b"engine", load_bundle(bundle))
    runtime.record_path(out).write_text("[]")
    with pytest.raises(BundleError, match=r"expected an engine record of format 1"):
        runtime.read_record(out)
    with pytest.raises(BundleError, match=r"nothing.engine: expected a file, found nothing"):
        runtime.read_record(tmp_path / "nothing.engine")


def test_shapes_outside_the_profile() -> None:
    engine = types.SimpleNamespace(
        get_tensor_profile_shape=lambda name, profile: ((1, 12), (8, 12), (64, 12)),
        create_execution_context=lambda: types.SimpleNamespace(active_optimization_profile=0),
        num_io_tensors=1,
        get_tensor_name=lambda i: "hidden",
        get_tensor_mode=lambda name: "in",
    )
    module = types.SimpleNamespace(TensorIOMode=types.SimpleNamespace(INPUT="in"))
    loaded = runtime.Engine(module, None, engine, {})
    array = types.SimpleNamespace(__cuda_array_interface__={"shape": (65, 12), "data": (0, False)})
    expected = r"engine input hidden: expected shape \[1, 12\] to \[64, 12\] \(profile 0\), found \[65, 12\]"
    with pytest.raises(ConfigError, match=expected):
        loaded.run({"hidden": array}, 1)
    with pytest.raises(ConfigError, match=r"engine.run: expected tensor hidden, found none of that name"):
        loaded.run({}, 1)


def test_without_a_driver_the_reason_is_said(bundle: Path, tmp_path: Path, double: Double) -> None:
    try:
        runtime.require_driver()
    except BackendUnavailable:
        out = tmp_path / "r.engine"
        stage.build_engine(bundle, out=out, what="routers", dtype="float32")
        with pytest.raises(
            BackendUnavailable, match=r"tensorrt: expected an NVIDIA GPU and its driver, found no"
        ):
            runtime.load(out)
    else:
        pytest.skip("there is a GPU")


def names_used(source: Path) -> set[str]:
    """Every `trt.X` and `trt.X.Y` of a file."""
    text = {
        ast.unparse(node)
        for node in ast.walk(ast.parse(source.read_text()))
        if isinstance(node, ast.Attribute)
    }
    return {name.removeprefix("trt.") for name in text if name.startswith("trt.") and "(" not in name}


@pytest.mark.parametrize("module", ["tensorrt", "tensorrt_bindings", "tensorrt_lean_bindings"])
def test_names_exist_in_the_real_bindings(module: str) -> None:
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} is not installed")
    try:
        trt = importlib.import_module(module)
    except (ImportError, OSError) as error:
        pytest.skip(f"{module} does not load: {error}")
    files = [Path(runtime.__file__)] + ([Path(stage.__file__)] if hasattr(trt, "Builder") else [])
    for name in sorted(set().union(*map(names_used, files))):
        value = trt
        for part in name.split("."):
            assert hasattr(value, part), f"{module} has no {name}"
            value = getattr(value, part)
