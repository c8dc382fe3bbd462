"""The TensorRT plugin: every call of a builder and a runtime up to enqueue, and the real lean runtimes."""

from __future__ import annotations

import ctypes
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pico_bundles import SIGMOID_GROUPS, make_layer
from tensorrt_calls import TYPES, Fields, Plugin, compile_harness, make, revive

from spectral_convert.export.routes import make_route
from spectral_runtime import backends
from spectral_runtime.errors import BackendUnavailable
from spectral_runtime.tensorrt import library_path


def _library() -> Path | None:
    try:
        return library_path()
    except BackendUnavailable:
        return None


pytestmark = pytest.mark.skipif(_library() is None, reason="libspectral_trt.so is not built")


@pytest.fixture(scope="module")
def calls(tmp_path_factory: pytest.TempPathFactory) -> Any:
    harness = compile_harness(tmp_path_factory.mktemp("harness"))
    if harness is None:
        pytest.skip("no C++ compiler")
    return harness


@pytest.fixture(scope="module")
def creator(calls: Any) -> int:
    found: int = calls.open_creator(str(_library()).encode())
    assert found
    return found


@pytest.fixture
def attributes(rng: np.random.Generator) -> dict[str, Any]:
    layer = make_layer(rng, experts=16, hidden=24, top_k=4, candidates=6, rule=SIGMOID_GROUPS, gate_rows=True)
    gate = layer.gate_weight, layer.gate_bias
    route = make_route(layer, mode="prefilter", candidates=6, gate=gate, choice_bias=layer.choice_bias)
    return route.attributes()


@pytest.fixture
def plugin(calls: Any, creator: int, attributes: dict[str, Any]) -> Plugin:
    made = make(calls, creator, attributes)
    assert made is not None
    return made


def test_names_and_capabilities(calls: Any, creator: int, plugin: Plugin) -> None:
    assert calls.creator_kind(ctypes.c_void_p(creator)) == b"PLUGIN CREATOR_V3ONE"
    assert [calls.name_of(plugin.handle, i) for i in range(3)] == [b"BvhRoute", b"1", b"spectral"]
    kinds = [b"PLUGIN_V3ONE_CORE", b"PLUGIN_V3ONE_BUILD", b"PLUGIN_V3ONE_RUNTIME"]
    assert [calls.kind_of(plugin.handle, i) for i in range(3)] == kinds


def test_parser_asks_for_every_attribute(calls: Any, creator: int, attributes: dict[str, Any]) -> None:
    names = calls.field_names(ctypes.c_void_p(creator)).contents
    asked = {names.fields[i].name.decode() for i in range(names.count)}
    assert set(attributes) - asked == {"plugin_version", "plugin_namespace", "exact_candidates"} | (
        set(attributes) & {"scores", "linear"}
    )


@pytest.mark.parametrize("states", ["float32", "float16", "bfloat16"])
def test_types_and_formats(calls: Any, plugin: Plugin, states: str) -> None:
    types = plugin.types(states)
    assert list(types)[12:] == [TYPES["int32"], TYPES[states]]
    assert all(calls.supports(plugin.handle, i, types) for i in range(14))
    for position in range(14):
        wrong = type(types)(*types)
        wrong[position] = 8  # int64
        assert not calls.supports(plugin.handle, position, wrong), position


def test_float32_weights_where_the_family_wants_them(
    calls: Any, creator: int, attributes: dict[str, Any]
) -> None:
    plugin = make(calls, creator, {**attributes, "returns": "float32"})
    assert plugin is not None
    assert list(plugin.types("bfloat16"))[13] == TYPES["float32"]


def test_shapes(calls: Any, plugin: Plugin) -> None:
    types = plugin.types("float32")
    assert calls.output_width(plugin.handle) == 4
    assert calls.configure(plugin.handle, types, 7, 24) == 0
    assert calls.configure(plugin.handle, types, 7, 25) != 0
    assert calls.shape_change(plugin.handle, types, 0, 24) == 0
    assert calls.shape_change(plugin.handle, types, 7, 23) != 0


def test_workspace_grows_to_a_limit(calls: Any, plugin: Plugin) -> None:
    types = plugin.types("float32")
    sizes = [calls.workspace_bytes(plugin.handle, types, tokens, 24) for tokens in (1, 10, 1024, 100_000)]
    assert sizes == [3 * 16 * 4 * n for n in (1, 10, 1024, 1024)]
    assert calls.tactics(plugin.handle) == 1
    assert [calls.set_tactic(plugin.handle, tactic) for tactic in (1, 2, 3)] == [0, 0, 1]


@pytest.mark.parametrize(
    ("change", "fits"),
    [
        ({}, True),
        ({"centred": 1}, False),
        ({"mode": "geometric"}, False),
        ({"softcap": 30.0}, False),
        ({"logit_scale": 2.0}, False),
        ({"score": "softmax"}, False),
        ({"score": "softmax", "has_choice_bias": 0}, True),
    ],
)
def test_rays_are_offered_where_each_expert_is_ranked_alone(
    calls: Any, creator: int, attributes: dict[str, Any], change: dict[str, Any], fits: bool
) -> None:
    plugin = make(calls, creator, {**attributes, "centred": 0, **change})
    assert plugin is not None
    rays = fits and backends.unavailable("optix") is None
    assert calls.tactics(plugin.handle) == (12 if rays else 1)
    for tokens in (1, 3000):  # the workspace holds the candidates whatever the machine has
        wanted = 3 * 16 * 4 * min(tokens, 1024) + (6 * 4 * tokens if fits else 0)
        assert calls.workspace_bytes(plugin.handle, plugin.types("float32"), tokens, 24) == wanted


def test_serialised_and_revived(calls: Any, creator: int, plugin: Plugin, attributes: dict[str, Any]) -> None:
    again = revive(calls, creator, plugin.serial())
    assert again is not None
    assert calls.timing_id(again.handle).decode() == attributes["digest"]
    assert calls.output_width(again.handle) == 4
    attached = again.attached()
    del again
    assert calls.shape_change(attached.handle, attached.types("float16"), 3, 24) == 0
    assert attached.serial().contents.fields[0].name == b"serial_format"


def test_engines_of_another_format_are_refused(calls: Any, creator: int, plugin: Plugin) -> None:
    fields = plugin.serial().contents
    other = ctypes.c_int32(2)
    fields.fields[0].data = ctypes.cast(ctypes.byref(other), ctypes.c_void_p)
    assert revive(calls, creator, ctypes.byref(fields)) is None
    assert revive(calls, creator, ctypes.byref(Fields(0, None))) is None


@pytest.mark.parametrize(
    "change",
    [{"format": 2}, {"top_k": 0}, {"candidates": 17}, {"groups": 3}, {"mode": "sideways"}, {"score": ""}],
)
def test_nodes_without_meaning_are_refused(
    calls: Any, creator: int, attributes: dict[str, Any], change: dict[str, Any]
) -> None:
    assert make(calls, creator, {**attributes, **change}) is None or change == {"score": ""}


def test_without_a_gpu_enqueue_returns_a_status(calls: Any, plugin: Plugin) -> None:
    try:
        if ctypes.CDLL("libcuda.so.1").cuInit(0) == 0:
            pytest.skip("there is a GPU")
    except OSError:
        pass
    attached = plugin.attached()
    none = (ctypes.c_void_p * 12)()
    arguments = (attached.types("float32"), ctypes.c_int64(3), ctypes.c_int64(24), none, none, None, None)
    assert calls.enqueue(attached.handle, *arguments) != 0
    empty = (arguments[0], ctypes.c_int64(0), *arguments[2:])
    assert calls.enqueue(attached.handle, *empty) == 0


def test_exports_and_needs_nothing_else() -> None:
    if shutil.which("nm") is None or shutil.which("readelf") is None:
        pytest.skip("binutils are not installed")
    library = str(_library())
    symbols = subprocess.run(
        ["nm", "-D", "--defined-only", library], capture_output=True, text=True, check=True
    )
    assert sorted(line.split()[-1] for line in symbols.stdout.splitlines()) == [
        "getCreators",
        "setLoggerFinder",
    ]
    out = subprocess.run(["readelf", "-d", library], capture_output=True, text=True, check=True).stdout
    needed = re.findall(r"\(NEEDED\).*\[(.*)\]", out)
    assert needed
    assert not [name for name in needed if re.search(r"cuda|cudart|nvinfer|python|onnxruntime", name)]


REAL = """
import importlib, json, sys
trt = importlib.import_module(sys.argv[1])
registry = trt.get_plugin_registry()
handle = registry.load_library(sys.argv[2])
creator = registry.get_creator("BvhRoute", "1", "spectral")
fields, kept = [], json.loads(sys.argv[3])
import numpy as np
arrays = []
for name, value in kept.items():
    if isinstance(value, str):
        array, kind = np.frombuffer(value.encode(), np.int8), trt.PluginFieldType.CHAR
    elif isinstance(value, float):
        array, kind = np.array([value], np.float32), trt.PluginFieldType.FLOAT32
    else:
        array, kind = np.array([value], np.int32), trt.PluginFieldType.INT32
    arrays.append(array)
    fields.append(trt.PluginField(name, array, kind))
collection = trt.PluginFieldCollection(fields)
plugin = creator.create_plugin("route", collection, trt.TensorRTPhase.BUILD)
build = plugin.get_capability_interface(trt.PluginCapabilityType.BUILD)
core = plugin.get_capability_interface(trt.PluginCapabilityType.CORE)
runtime = plugin.get_capability_interface(trt.PluginCapabilityType.RUNTIME)
again = registry.load_library(sys.argv[2])
print(json.dumps({
    "version": trt.__version__, "loaded": handle is not None, "twice": again is not None,
    "names": [core.plugin_name, core.plugin_version, core.plugin_namespace],
    "outputs": build.num_outputs, "timing": build.timing_cache_id, "limit": build.format_combination_limit,
    "runtime": runtime is not None, "clone": type(plugin.clone()).__name__,
}))
"""


FOLDERS = [folder for folder in os.environ.get("SPECTRAL_TENSORRT_FOLDERS", "").split(":") if folder]
"""Further installations (pip install --target), for versions beside the installed one."""


@pytest.mark.parametrize("folder", [None, *FOLDERS])
@pytest.mark.parametrize("module", ["tensorrt_lean_bindings", "tensorrt_dispatch_bindings"])
def test_real_runtimes(module: str, folder: str | None, attributes: dict[str, Any]) -> None:
    """In a process of its own: TensorRT's registry is process-wide."""
    if folder is None and importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} is not installed")
    environment = os.environ if folder is None else {**os.environ, "PYTHONPATH": folder}
    command = [sys.executable, "-c", REAL, module, str(_library()), json.dumps(attributes)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert int(found["version"].split(".")[0]) in (10, 11)
    assert found["loaded"]
    assert found["names"] == ["BvhRoute", "1", "spectral"]
    assert (found["outputs"], found["timing"], found["limit"]) == (2, attributes["digest"], 3)
    assert found["runtime"]
