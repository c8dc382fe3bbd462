"""The custom operator on ONNX Runtime's CUDA provider: pointers and stream of a played runtime, the CPU operator's ids."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import ort_calls
import pytest
from pico_bundles import SIGMOID_GROUPS, make_layer

from spectral_convert.export.routes import INPUTS
from spectral_runtime import onnxruntime as ours
from spectral_runtime.errors import BackendUnavailable

RULES: dict[str, dict[str, Any]] = {
    "softmax": {},
    "normalised": {"normalise": True, "normalise_eps": 1e-6, "normalise_min": 1e-6},
    "softmax_of_chosen": {"score": "logits", "weight": "softmax"},
    "sigmoid_groups": SIGMOID_GROUPS,
    "softplus": {"score": "sqrtsoftplus", "choice_bias": True, "normalise": True},
    "bent": {"logit_scale": 0.5, "softcap": 30.0, "score": "sigmoid"},
    "sparsemixer": {"score": "logits", "weight": "sparsemixer", "threshold": 0.02},
}
MODES = ("dense", "prefilter", "geometric")
SIZES: dict[str, Any] = {"experts": 48, "hidden": 40, "top_k": 4, "candidates": 12}
CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"


def _library() -> Path | None:
    try:
        return ours.library_path()
    except BackendUnavailable:
        return None


pytestmark = pytest.mark.skipif(_library() is None, reason="libspectral_ort.so is not built")


@pytest.fixture(scope="module")
def played() -> ort_calls.Played:
    library = _library()
    assert library is not None
    return ort_calls.Played(library)


@pytest.fixture
def cuda(played: ort_calls.Played) -> Any:
    """torch, where the library has registered itself for the CUDA provider."""
    torch = pytest.importorskip("torch")
    if not any(played.provider(op) == CUDA for op in played.ops):
        pytest.skip("no NVIDIA driver here, or the library was built without nvcc")
    torch.zeros(1, device="cuda")
    return torch


def route_of(rng: np.random.Generator, mode: Any, rule: dict[str, Any], **sizes: Any) -> Any:
    from spectral_convert.export.routes import make_route

    layer = make_layer(rng, rule=rule, gate_rows=True, **{**SIZES, **sizes})
    gate = layer.gate_weight / np.float32(layer.entry.hidden), layer.gate_bias
    route = make_route(
        layer, mode=mode, candidates=layer.entry.candidates, gate=gate, choice_bias=layer.choice_bias
    )
    if route.uses_geometry:
        route.arrays["projection"] = route.arrays["projection"] / np.float32(4 * layer.entry.hidden)
    return route


def states_of(rng: np.random.Generator, route: Any, tokens: int) -> np.ndarray:
    mean = route.arrays["mean"]
    return (mean + 0.25 * rng.standard_normal((tokens, route.hidden))).astype(np.float32)


def on_host(array: np.ndarray) -> ort_calls.Tensor:
    whole = np.ascontiguousarray(array)
    return ort_calls.Tensor(whole.ctypes.data, str(whole.dtype), whole.shape, whole)


def run_on_host(played: ort_calls.Played, route: Any, states: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    kernel = played.kernel(CPU, "float32", "float32", route.attributes())
    inputs = [on_host(states), *(on_host(route.arrays[name]) for name in INPUTS[1:])]

    def make(index: int, shape: tuple[int, ...]) -> ort_calls.Tensor:
        return on_host(np.full(shape, -1, np.int32 if index == 0 else np.float32))

    found = kernel.run(ort_calls.Call(inputs, make))
    return found[0].owner, found[1].owner


class OnDevice:
    """A node on the CUDA provider, its arrays on the GPU once, as a session has them."""

    def __init__(self, played: ort_calls.Played, torch: Any, route: Any, kind: str = "float32") -> None:
        self.torch, self.kind, self.route = torch, kind, route
        self.kernel = played.kernel(CUDA, kind, kind, route.attributes())
        arrays = [torch.tensor(route.arrays[name], device="cuda") for name in INPUTS[1:]]
        arrays[5], arrays[6] = arrays[5].to(self.dtype), arrays[6].to(self.dtype)
        self.arrays = [self.tensor(array) for array in arrays]

    @property
    def dtype(self) -> Any:
        return getattr(self.torch, self.kind)

    def tensor(self, held: Any) -> ort_calls.Tensor:
        kind = str(held.dtype).removeprefix("torch.")
        return ort_calls.Tensor(held.data_ptr(), kind, tuple(held.shape), held)

    def call(self, hidden: Any, outputs: Any = None) -> ort_calls.Call:
        """On the current stream; into `outputs` where given."""
        kinds = (self.torch.int32, self.dtype)

        def make(index: int, shape: tuple[int, ...]) -> ort_calls.Tensor:
            if outputs is not None:
                return self.tensor(outputs[index])
            return self.tensor(self.torch.full(shape, -1, dtype=kinds[index], device="cuda"))

        stream = self.torch.cuda.current_stream().cuda_stream
        return ort_calls.Call([self.tensor(hidden), *self.arrays], make, stream)

    def run(self, states: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        hidden = self.torch.tensor(states, device="cuda").to(self.dtype)
        found = self.kernel.run(self.call(hidden))
        self.torch.cuda.synchronize()
        return found[0].owner.cpu().numpy(), found[1].owner.float().cpu().numpy()


def test_providers_and_types(played: ort_calls.Played) -> None:
    """Every pair of types on the CPU; the same on CUDA where there is a driver, so that no session is refused."""
    pairs = [(1, 1), (10, 10), (16, 16), (10, 1), (16, 1)]
    found: dict[str, list[tuple[int, int]]] = {}
    for op in played.ops:
        found.setdefault(played.provider(op), []).append(played.types(op))
    assert found.pop(CPU) == pairs
    assert found in ({}, {CUDA: pairs})


def test_the_played_runtime_gives_the_ids_of_the_real_one(
    played: ort_calls.Played, rng: np.random.Generator
) -> None:
    pytest.importorskip("onnx", reason="the extra onnx is not installed")
    ort = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    from spectral_convert.export.graphs import routers_model

    route = route_of(rng, "prefilter", {})
    states = states_of(rng, route, 37)
    session = ort.InferenceSession(
        routers_model([route]).SerializeToString(), ours.register(ort.SessionOptions())
    )
    ids, weights = session.run(None, {"hidden": states})
    mine = run_on_host(played, route, states)
    np.testing.assert_array_equal(mine[0], ids)
    np.testing.assert_array_equal(mine[1], weights)


def test_a_node_of_a_newer_format_is_refused(played: ort_calls.Played, rng: np.random.Generator) -> None:
    attributes = {**route_of(rng, "dense", {}).attributes(), "format": 2}
    with pytest.raises(ort_calls.Refused, match=r"BvhRoute\.format: expected 1, what this library reads"):
        played.kernel(CPU, "float32", "float32", attributes)


@pytest.mark.gpu
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES.keys())
def test_same_ids_as_the_cpu(
    played: ort_calls.Played, cuda: Any, rng: np.random.Generator, rule: dict[str, Any], mode: Any
) -> None:
    route = route_of(rng, mode, rule)
    node = OnDevice(played, cuda, route)
    for tokens in (0, 1, 17, 200, 3000):
        states = states_of(rng, route, tokens)
        wanted, found = run_on_host(played, route, states), node.run(states)
        np.testing.assert_array_equal(found[0], wanted[0])
        np.testing.assert_allclose(found[1], wanted[1], atol=2e-5, rtol=1e-4)


@pytest.mark.gpu
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_half_precision_rounds_states_and_gate(
    played: ort_calls.Played, cuda: Any, rng: np.random.Generator, kind: str, mode: Any
) -> None:
    route = route_of(rng, mode, {"score": "logits", "weight": "softmax"})
    rounded = states_of(rng, route, 300)
    rounded = cuda.tensor(rounded).to(getattr(cuda, kind)).float().numpy()
    for name in ("gate_weight", "gate_bias"):
        route.arrays[name] = cuda.tensor(route.arrays[name]).to(getattr(cuda, kind)).float().numpy()
    wanted = run_on_host(played, route, rounded)
    found = OnDevice(played, cuda, route, kind).run(rounded)
    np.testing.assert_array_equal(found[0], wanted[0])
    np.testing.assert_allclose(found[1], wanted[1], atol=4e-3 if kind == "bfloat16" else 5e-4)


@pytest.mark.gpu
def test_streams_and_graphs(played: ort_calls.Played, cuda: Any, rng: np.random.Generator) -> None:
    route = route_of(rng, "prefilter", {}, experts=300)
    node = OnDevice(played, cuda, route)
    batches = [states_of(rng, route, 130) for _ in range(3)]
    wanted = [run_on_host(played, route, states) for states in batches]
    hidden = [cuda.tensor(states, device="cuda") for states in batches]
    cuda.cuda.synchronize()
    calls = []
    for states in hidden:  # one stream each, none waited for
        with cuda.cuda.stream(cuda.cuda.Stream()):
            calls.append(node.kernel.run(node.call(states)))
    cuda.cuda.synchronize()
    for call, expected in zip(calls, wanted, strict=True):
        np.testing.assert_array_equal(call[0].owner.cpu().numpy(), expected[0])

    outputs = (cuda.empty((130, 4), dtype=cuda.int32, device="cuda"), cuda.empty((130, 4), device="cuda"))
    stream, graph, states = cuda.cuda.Stream(), cuda.cuda.CUDAGraph(), hidden[0].clone()
    with cuda.cuda.stream(stream):
        node.kernel.run(node.call(states, outputs))  # the workspace of this stream is made here
        stream.synchronize()
        with cuda.cuda.graph(graph, stream=stream):
            node.kernel.run(node.call(states, outputs))
    states.copy_(hidden[1])
    graph.replay()
    cuda.cuda.synchronize()
    np.testing.assert_array_equal(outputs[0].cpu().numpy(), wanted[1][0])


@pytest.mark.gpu
def test_arrays_of_another_size_are_refused(
    played: ort_calls.Played, cuda: Any, rng: np.random.Generator
) -> None:
    route = route_of(rng, "dense", {})
    route.arrays["gate_weight"] = route.arrays["gate_weight"][:-1]
    with pytest.raises(ort_calls.Refused, match=r"BvhRoute input 6: expected 1920 numbers, found 1880"):
        OnDevice(played, cuda, route).run(states_of(rng, route, 3))
