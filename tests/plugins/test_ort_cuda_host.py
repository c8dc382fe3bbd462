"""The host side of the CUDA operator under a fake driver: what is registered, checked, launched, and where."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import ort_calls
import pytest
from pico_bundles import make_layer

from spectral_runtime import onnxruntime as ours
from spectral_runtime.errors import BackendUnavailable

ROOT = Path(__file__).parents[2]
CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
ARRAYS = ("mean", "projection", "directions", "beta", "spread", "gate_weight", "gate_bias", "choice_bias",
          "bvh_first", "bvh_count", "bvh_experts")  # fmt: skip
GATE_WEIGHT = 6
"""Place of the gate's rows among the inputs."""


class World:
    """A copy of the library, so that it looks for its driver anew, and the driver's notes."""

    def __init__(self, library: Path, driver: Path) -> None:
        self.library = library
        fake = ctypes.CDLL(str(driver))
        fake.fake_written.restype = ctypes.POINTER(ctypes.c_int64)
        self.written = fake.fake_written()
        self.played = ort_calls.Played(library)

    def note(self, *names: str) -> tuple[int, ...]:
        order = ("launches", "allocations", "stream", "blocks", "tokens", "hidden", "gate", "ids", "weights",
                 "workspace", "type", "weight_type")  # fmt: skip
        return tuple(self.written[order.index(name)] for name in names)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    compiler = shutil.which("g++") or shutil.which("c++")
    try:
        library = ours.library_path()
    except BackendUnavailable as absent:
        pytest.skip(str(absent))
    if compiler is None:
        pytest.skip("no C++ compiler")
    folder = tmp_path_factory.mktemp("driver")
    driver, copy = folder / "libfake.so", folder / "libspectral_ort.so"
    includes = [f"-I{ROOT / 'plugins' / 'cuda'}", f"-I{ROOT / 'plugins' / 'core' / 'include'}"]
    source = str(ROOT / "tests" / "plugins" / "fake_libcuda.cpp")
    subprocess.run(
        [compiler, "-std=c++20", "-shared", "-fPIC", *includes, source, "-o", str(driver)], check=True
    )
    shutil.copy(library, copy)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPECTRAL_LIBCUDA", str(driver))
        made = World(copy, driver)
        if not any(made.played.provider(op) == CUDA for op in made.played.ops):
            pytest.skip("built without nvcc")
        yield made


@pytest.fixture
def route(rng: np.random.Generator) -> Any:
    from spectral_convert.export.routes import make_route

    layer = make_layer(rng, experts=48, hidden=40, top_k=4, candidates=12, gate_rows=True)
    gate = layer.gate_weight, layer.gate_bias
    return make_route(layer, mode="prefilter", candidates=12, gate=gate, choice_bias=layer.choice_bias)


def tensor(array: np.ndarray, kind: str | None = None) -> ort_calls.Tensor:
    return ort_calls.Tensor(array.ctypes.data, kind or str(array.dtype), array.shape, array)


def call_of(route: Any, tokens: int, stream: int, half: bool = False) -> ort_calls.Call:
    """Hidden states and gate in 16 bits where asked; their values do not matter here."""
    arrays = [
        np.zeros((tokens, route.hidden), np.float32),
        *(np.array(route.arrays[name]) for name in ARRAYS),
    ]
    inputs = [tensor(array) for array in arrays]
    for place in (0, GATE_WEIGHT, GATE_WEIGHT + 1) if half else ():
        inputs[place] = tensor(arrays[place].astype(np.float16), "bfloat16")
    return ort_calls.Call(inputs, lambda _, shape: tensor(np.zeros(shape, np.int32)), stream)


def test_both_providers_are_registered(world: World) -> None:
    pairs = [(1, 1), (10, 10), (16, 16), (10, 1), (16, 1)]
    found = [(world.played.provider(op), world.played.types(op)) for op in world.played.ops]
    assert found == [(CPU, pair) for pair in pairs] + [(CUDA, pair) for pair in pairs]


def test_the_real_runtime_takes_both_kinds(world: World, route: Any) -> None:
    pytest.importorskip("onnx", reason="the extra onnx is not installed")
    ort = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    from spectral_convert.export.graphs import routers_model

    data, states = routers_model([route]).SerializeToString(), np.zeros((3, route.hidden), np.float32)
    options = ort.SessionOptions()
    options.register_custom_ops_library(str(world.library))
    ours_ids = ort.InferenceSession(data, options, providers=[CPU]).run(None, {"hidden": states})[0]
    plain = ort.InferenceSession(data, providers=[CPU]).run(None, {"hidden": states})[0]
    np.testing.assert_array_equal(ours_ids, plain)


def test_a_launch_gets_the_callers_pointers_and_stream(world: World, route: Any) -> None:
    kernel = world.played.kernel(CUDA, "bfloat16", "bfloat16", {**route.attributes(), "returns": "model"})
    call = call_of(route, 5, 0x1230, half=True)
    found = kernel.run(call)
    assert world.note("stream", "blocks", "tokens", "type", "weight_type") == (0x1230, 5, 5, 2, 2)
    places = (call.inputs[0], call.inputs[GATE_WEIGHT], found[0], found[1])
    assert world.note("hidden", "gate", "ids", "weights") == tuple(place.address for place in places)
    assert (found[0].shape, found[1].shape) == ((5, 4), (5, 4))


def test_weights_may_stay_float32(world: World, route: Any) -> None:
    attributes = {**route.attributes(), "returns": "float32"}
    world.played.kernel(CUDA, "bfloat16", "float32", attributes).run(call_of(route, 2, 1, half=True))
    assert world.note("type", "weight_type") == (2, 0)


def test_one_workspace_a_stream_and_no_allocation_after_the_first_call(world: World, route: Any) -> None:
    kernel = world.played.kernel(CUDA, "float32", "float32", route.attributes())
    places = []
    for stream in (1, 2, 1, 2):
        kernel.run(call_of(route, 9, stream))
        places.append(world.note("workspace", "allocations"))
    assert places[0] == (places[2][0], places[0][1])
    assert places[1][0] == places[3][0] != places[0][0]
    assert [count - places[0][1] for _, count in places] == [0, 1, 1, 1]


def test_no_tokens_is_no_launch(world: World, route: Any) -> None:
    kernel = world.played.kernel(CUDA, "float32", "float32", route.attributes())
    before = world.note("launches")
    assert kernel.run(call_of(route, 0, 1))[0].shape == (0, 4)
    assert world.note("launches") == before


def test_arrays_and_states_of_another_size_are_refused_before_a_launch(world: World, route: Any) -> None:
    kernel = world.played.kernel(CUDA, "float32", "float32", route.attributes())
    before = world.note("launches")
    route.arrays["gate_weight"] = route.arrays["gate_weight"][:-1]
    with pytest.raises(ort_calls.Refused, match=r"BvhRoute input 6: expected 1920 numbers, found 1880"):
        kernel.run(call_of(route, 3, 1))
    call = call_of(route, 3, 1)
    call.inputs[0].shape = (3, 39)  # type: ignore[index]
    with pytest.raises(ort_calls.Refused, match=r"BvhRoute\.hidden: expected shape \[T, 40\]"):
        kernel.run(call)
    assert world.note("launches") == before


def test_a_step_without_room_in_the_kernel_is_refused_when_the_session_is_made(
    world: World, route: Any
) -> None:
    attributes = {**route.attributes(), "experts": 130, "groups": 65, "groups_kept": 2}
    with pytest.raises(ort_calls.Refused, match=r"expected at most 64 groups and 256 coordinates, found 65"):
        world.played.kernel(CUDA, "float32", "float32", attributes)
    world.played.kernel(CPU, "float32", "float32", attributes)
