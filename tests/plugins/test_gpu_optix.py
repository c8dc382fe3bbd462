"""OptiX on device tensors: streams, dtypes, captures that go to the CUDA back-end, and what a token costs."""

from __future__ import annotations

import numpy as np
import pytest
from gpu_worlds import assert_same_candidates, make_geometry, require

from spectral_runtime import cuda, optix
from spectral_runtime.bvh import build_bvh
from spectral_runtime.errors import ConfigError
from spectral_runtime.gate import GateRule

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def _needs_optix():
    require("optix")


class Layer:
    """One layer on OptiX, called with device tensors."""

    def __init__(self, rng, experts, *, count=7, levels=1, colours=0):
        self.geometry = make_geometry(rng, experts, levels=levels, colours=colours)
        self.rule = GateRule(experts=experts, top_k=count, normalise=True)
        self.router = optix.native_router(self.geometry, self.rule, build_bvh(self.geometry), None)
        self.count = count

    def buffers(self, tokens, wide=False):
        """Ids, scores and work."""
        ids = torch.full((tokens, self.count), -1, dtype=torch.int64 if wide else torch.int32, device="cuda")
        return (
            ids,
            torch.zeros(tokens, self.count, device="cuda"),
            torch.zeros(tokens, 2, dtype=torch.int32, device="cuda"),
        )

    def call(self, x, ids, scores, work, *, weights=None, stream=None):
        """Whether rays were traced."""
        stream = torch.cuda.current_stream() if stream is None else stream
        return self.router.candidates(
            x.data_ptr(), x.stride(0), len(x), cuda.DTYPES.index(str(x.dtype).removeprefix("torch.")), self.count,
            ids.data_ptr(), ids.dtype == torch.int64, 0 if scores is None else scores.data_ptr(),
            0 if weights is None else weights.data_ptr(), work.data_ptr(), stream.cuda_stream,
        )  # fmt: skip

    def check(self, x, ids, scores):
        """The lists are the reference's for what the device saw."""
        found = ids.int().cpu().numpy(), scores.cpu().numpy()
        assert_same_candidates(self.geometry, self.rule, x.float().cpu().numpy(), found)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("tokens", [1, 33, 1000])
def test_every_dtype_and_a_stride(rng, dtype, tokens):
    layer = Layer(rng, 1001, levels=2, colours=3)
    wide = torch.tensor(rng.standard_normal((tokens, 80)), dtype=getattr(torch, dtype), device="cuda")
    x = wide[:, 8:72]
    ids, scores, work = layer.buffers(tokens, wide=True)
    assert layer.call(x, ids, scores, work)
    layer.check(x, ids, scores)


def test_weights_are_the_softmax_of_the_scores(rng):
    layer = Layer(rng, 500)
    x = torch.tensor(rng.standard_normal((50, 64)), dtype=torch.float32, device="cuda")
    ids, scores, work = layer.buffers(50)
    again, weights = torch.empty_like(ids), torch.empty_like(scores)
    layer.call(x, ids, scores, work)
    layer.call(x, again, None, work, weights=weights)
    assert (ids == again).all()
    torch.testing.assert_close(weights, scores.softmax(1))
    with pytest.raises(ConfigError, match="scores, or weights"):
        layer.call(x, ids, None, work)


def test_most_tokens_are_answered_by_rays_and_few_experts_are_scored(rng):
    geometry = make_geometry(rng, 20_000)
    engine = optix.Engine(geometry, GateRule(experts=20_000, top_k=8), None, choice_bias=None, threads=None)
    work = engine.work(rng.standard_normal((500, 64)).astype(np.float32), 8)
    assert (work[:, 1] > 0).mean() > 0.5
    assert work[work[:, 1] > 0, 0].mean() < 0.5 * 20_000


def test_tokens_far_from_every_sphere_are_scanned(rng):
    layer = Layer(rng, 3001, count=32, levels=2, colours=1)
    x = torch.tensor(rng.standard_normal((40, 64)), dtype=torch.float32, device="cuda")
    x[::2] *= 1e6
    ids, scores, work = layer.buffers(40, wide=True)
    assert layer.call(x, ids, scores, work)
    assert (work[::2, 1] == -1).all()
    assert (work[1::2, 1] > 0).any()
    layer.check(x, ids, scores)


def test_structures_are_compacted_and_the_cores_are_named(rng):
    facts = Layer(rng, 4096).router.facts
    assert facts["abi"] in (84, 87, 93, 105)
    assert facts["rtcore_version"] >= 0
    assert 1 <= facts["structures"] <= 6
    assert 0 < facts["structure_bytes"] <= facts["uncompacted_bytes"]


def test_inside_a_capture_the_cuda_back_end_answers_and_the_graph_replays(rng):
    layer = Layer(rng, 3000)
    x = torch.tensor(rng.standard_normal((64, 64)), dtype=torch.float32, device="cuda")
    ids, scores, work = layer.buffers(64)
    assert layer.call(x, ids, scores, work)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        assert not layer.call(x, ids, scores, work)
    x.copy_(torch.tensor(rng.standard_normal((64, 64)), dtype=torch.float32))
    ids.fill_(-1)
    graph.replay()
    torch.cuda.synchronize()
    layer.check(x, ids, scores)


def test_layers_and_streams_share_one_pipeline(rng):
    layers = [Layer(rng, experts) for experts in (100, 3000, 700)]
    streams = [torch.cuda.Stream() for _ in range(3)]
    inputs = [
        torch.tensor(rng.standard_normal((200, 64)), dtype=torch.float32, device="cuda") for _ in layers
    ]
    outputs = [layer.buffers(200) for layer in layers]
    torch.cuda.synchronize()
    for _ in range(20):
        for layer, stream, x, out in zip(layers, streams, inputs, outputs, strict=True):
            layer.call(x, *out, stream=stream)
    torch.cuda.synchronize()
    for layer, x, (ids, scores, _) in zip(layers, inputs, outputs, strict=True):
        layer.check(x, ids, scores)
