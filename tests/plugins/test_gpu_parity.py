"""CUDA and OptiX return the candidates of the reference, for every size, shape and hostile input."""

from __future__ import annotations

import numpy as np
import pytest
from gpu_worlds import assert_same_candidates, make_geometry, require

from spectral_runtime import cuda
from spectral_runtime.bvh import build_bvh
from spectral_runtime.errors import ConfigError
from spectral_runtime.gate import GateRule
from spectral_runtime.router import Router

pytestmark = pytest.mark.gpu


@pytest.fixture(params=["cuda", "optix"])
def backend(request: pytest.FixtureRequest) -> str:
    require(request.param)
    return str(request.param)


def routers(geometry, rule, backend, *, choice_bias=None):
    """One router that scans and one that may walk the tree."""
    bvh = build_bvh(geometry, choice_bias)
    return [Router(geometry, rule, tree, choice_bias=choice_bias, backend=backend) for tree in (None, bvh)]


@pytest.mark.parametrize("experts", [1, 2, 31, 32, 33, 64, 257, 1000, 4099, 65_536, 1_000_003])
def test_the_candidates_are_those_of_the_reference(rng, backend, experts):
    geometry = make_geometry(rng, experts)
    count = min(7, experts)
    rule = GateRule(experts=experts, top_k=count)
    hidden = rng.standard_normal((5 if experts > 100_000 else 67, 64)).astype(np.float32)
    for router in routers(geometry, rule, backend):
        assert_same_candidates(geometry, rule, hidden, router.candidates(hidden, count))


@pytest.mark.parametrize(("levels", "colours"), [(1, 0), (1, 5), (2, 0), (3, 32), (4, 0), (4, 32)])
@pytest.mark.parametrize("score", ["softmax", "sigmoid", "sqrtsoftplus"])
def test_levels_and_colours_and_choice_rules(rng, backend, levels, colours, score):
    geometry = make_geometry(rng, 5000, levels=levels, colours=colours, scale=0.3)
    biased = score != "softmax"
    bias = (rng.standard_normal(5000) * 0.1).astype(np.float32) if biased else None
    rule = GateRule(experts=5000, top_k=8, score=score, choice_bias=biased)
    hidden = rng.standard_normal((33, 64)).astype(np.float32)
    for router in routers(geometry, rule, backend, choice_bias=bias):
        assert_same_candidates(geometry, rule, hidden, router.candidates(hidden, 32), bias)


@pytest.mark.parametrize("experts", [1, 33, 1000, 4099, 40_000])
@pytest.mark.parametrize(("levels", "colours"), [(1, 0), (2, 3)])
def test_a_tree_walk_finds_what_a_scan_finds(rng, experts, levels, colours):
    require("cuda")
    geometry = make_geometry(rng, experts, levels=levels, colours=colours)
    count = min(9, experts)
    rule = GateRule(experts=experts, top_k=count)
    hidden = rng.standard_normal((21, 64)).astype(np.float32)
    native = cuda.native_router(geometry, rule, build_bvh(geometry), None)
    found = native.route(hidden, count, method="search")
    assert_same_candidates(geometry, rule, hidden, found)
    assert all((a == b).all() for a, b in zip(found, native.route(hidden, count, method="scan"), strict=True))


@pytest.mark.parametrize("hidden_size", [3, 61, 128, 2048])
def test_any_hidden_size(rng, backend, hidden_size):
    geometry = make_geometry(rng, 100, hidden=hidden_size)
    rule = GateRule(experts=100, top_k=3)
    hidden = rng.standard_normal((9, hidden_size)).astype(np.float32)
    for router in routers(geometry, rule, backend):
        assert_same_candidates(geometry, rule, hidden, router.candidates(hidden, 9))


@pytest.mark.parametrize("scale", [1e-18, 1e-6, 1e6, 1e15])
def test_huge_and_tiny_spheres(rng, backend, scale):
    geometry = make_geometry(rng, 3000, scale=scale)
    rule = GateRule(experts=3000, top_k=8)
    hidden = rng.standard_normal((16, 64)).astype(np.float32)
    for router in routers(geometry, rule, backend):
        assert_same_candidates(geometry, rule, hidden, router.candidates(hidden, 8))


def test_duplicates_are_ordered_by_id(rng, backend):
    geometry = make_geometry(rng, 3000)
    geometry.centres[:] = geometry.centres[:, :1]
    geometry.beta[:] = geometry.beta[0]
    rule = GateRule(experts=3000, top_k=8)
    hidden = rng.standard_normal((4, 64)).astype(np.float32)
    for router in routers(geometry, rule, backend):
        ids, _ = router.candidates(hidden, 8)
        assert (ids == np.arange(8)).all()


def test_an_empty_batch_gives_empty_arrays(rng, backend):
    geometry = make_geometry(rng, 40)
    for router in routers(geometry, GateRule(experts=40, top_k=2), backend):
        ids, scores = router.candidates(np.zeros((0, 64), np.float32), 2)
        assert ids.shape == scores.shape == (0, 2)


def test_rows_with_nan_rank_experts_by_id_and_leave_the_others_alone(rng, backend):
    geometry = make_geometry(rng, 3000)
    rule = GateRule(experts=3000, top_k=4)
    hidden = rng.standard_normal((6, 64)).astype(np.float32)
    for router in routers(geometry, rule, backend):
        clean, _ = router.candidates(hidden, 4)
        damaged = hidden.copy()
        damaged[2, 5] = np.nan
        ids, scores = router.candidates(damaged, 4)
        assert (ids[2] == np.arange(4)).all()
        assert np.isnan(scores[2]).all()
        assert (np.delete(ids, 2, axis=0) == np.delete(clean, 2, axis=0)).all()


def test_more_candidates_than_experts_are_refused(rng, backend):
    geometry = make_geometry(rng, 10)
    for router in routers(geometry, GateRule(experts=10, top_k=2), backend):
        with pytest.raises(ConfigError, match="expected 1 to 10"):
            router.candidates(np.zeros((1, 64), np.float32), 11)


def test_scores_and_long_candidate_lists(rng, backend):
    geometry = make_geometry(rng, 300, levels=2)
    rule = GateRule(experts=300, top_k=8)
    hidden = rng.standard_normal((12, 64)).astype(np.float32)
    truth = Router(geometry, rule, backend="reference")
    for router in routers(geometry, rule, backend):
        np.testing.assert_allclose(router.scores(hidden), truth.scores(hidden), rtol=2e-4, atol=2e-4)
        assert_same_candidates(geometry, rule, hidden, router.candidates(hidden, 100))
