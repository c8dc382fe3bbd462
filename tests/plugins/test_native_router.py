"""The native router itself: every instruction set and method against brute force, and bit for bit alike."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import CHOICES, assert_best, exact_choice, exact_scores, random_geometry, rounding

from spectral_runtime.bvh import build_bvh
from spectral_runtime.errors import ConfigError
from spectral_runtime.gate import GateRule
from spectral_runtime.geometry import Bvh, Geometry

native = pytest.importorskip("spectral_runtime._native", reason="the native core is not built")

SIZES = (1, 2, 3, 7, 64, 100, 1000, 4097)
SHAPES = ((1, 0), (1, 5), (2, 0), (3, 1), (4, 12), (7, 0))


def make(geometry: Geometry, bvh: Bvh | None = None, **settings: Any) -> Any:
    tree = {} if bvh is None else {"first": bvh.first, "count": bvh.count, "experts": bvh.experts}
    g = geometry
    return native.CpuRouter(
        g.mean, g.projection, g.centres, g.colour, g.beta, common=g.common, **tree, **settings
    )


def counts_for(experts: int) -> list[int]:
    return sorted({1, min(8, experts), min(33, experts), min(129, experts), experts})


@pytest.mark.parametrize("simd", native.available_simd())
@pytest.mark.parametrize("experts", SIZES)
@pytest.mark.parametrize("shape", SHAPES)
def test_best_by_scan_and_search(
    rng: np.random.Generator, simd: str, experts: int, shape: tuple[int, int]
) -> None:
    geometry = random_geometry(rng, experts, *shape)
    router = make(geometry, build_bvh(geometry), simd=simd, threads=1)
    points = rng.standard_normal((9, geometry.rank), dtype=np.float32)
    choice = exact_scores(geometry, points)
    for count in counts_for(experts):
        ids, scores, work = router.route_points(points, count, method="scan")
        assert (work.scanned, work.searched) == (9, 0)
        assert_best(choice, ids, scores, rounding(geometry, points))
        found, found_scores, work = router.route_points(points, count, method="search")
        assert (work.scanned, work.searched) == (0, 9)
        np.testing.assert_array_equal(found, ids)
        np.testing.assert_array_equal(found_scores, scores)


@pytest.mark.parametrize("simd", native.available_simd())
@pytest.mark.parametrize("score", ["sigmoid", "sqrtsoftplus"])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("experts", [3, 100, 4097])
def test_choice_rules(rng: np.random.Generator, simd: str, score: str, biased: bool, experts: int) -> None:
    geometry = random_geometry(rng, experts, 2, 1)
    bias = rng.standard_normal(experts, dtype=np.float32) if biased else None
    router = make(geometry, build_bvh(geometry, bias), simd=simd, threads=1, choice=score, choice_bias=bias)
    points = rng.standard_normal((9, geometry.rank), dtype=np.float32)
    rule = GateRule(experts=experts, top_k=1, score=score, choice_bias=biased)  # type: ignore[arg-type]
    choice = exact_choice(rule, exact_scores(geometry, points), bias)
    tolerance = rounding(geometry, points) + 2e-6
    for count in counts_for(experts):
        ids, scores, _ = router.route_points(points, count, method="scan")
        assert_best(choice, ids, scores, tolerance)
        found, found_scores, _ = router.route_points(points, count, method="search")
        np.testing.assert_array_equal(found, ids)
        np.testing.assert_array_equal(found_scores, scores)


@pytest.mark.parametrize("simd", native.available_simd())
def test_choice_rules_over_the_whole_range(simd: str) -> None:
    """One expert at the origin whose beta walks over the floats: the transforms against float64."""
    logits = np.concatenate([np.linspace(-86, 86, 20_001), [0.0, -1e-30, 1e30, -3e4, 3e4]]).astype(np.float32)
    experts = len(logits)
    geometry = dataclasses.replace(
        random_geometry(np.random.default_rng(0), experts),
        beta=logits,
        centres=np.zeros((1, experts, 3), np.float32),
    )
    for score in ("sigmoid", "sqrtsoftplus"):
        router = make(geometry, choice=score, simd=simd)
        ids, scores, _ = router.route_points(np.zeros((1, 3), np.float32), experts)
        want = CHOICES[score](logits.astype(np.float64))[ids[0]]
        np.testing.assert_allclose(scores[0], want, rtol=1e-6, atol=2e-19)


@pytest.mark.parametrize("hidden", [1, 15, 16, 17, 200, 2048])
@pytest.mark.parametrize("simd", native.available_simd())
@pytest.mark.parametrize("shape", [(1, 0), (4, 12), (6, 7)])
def test_projection(rng: np.random.Generator, hidden: int, simd: str, shape: tuple[int, int]) -> None:
    geometry = random_geometry(rng, 20, *shape, hidden=hidden)
    geometry = dataclasses.replace(geometry, common=rng.standard_normal(hidden, dtype=np.float32))
    states = rng.standard_normal((21, hidden), dtype=np.float32)
    centred = (states - geometry.mean).astype(np.float64)
    points = centred @ geometry.projection.T.astype(np.float64)
    want = exact_scores(geometry, points) + (centred @ geometry.common.astype(np.float64))[:, None]
    np.testing.assert_allclose(make(geometry, simd=simd).scores(states), want, rtol=2e-4, atol=2e-4)


def test_a_token_does_not_depend_on_its_batch(rng: np.random.Generator) -> None:
    geometry = random_geometry(rng, 300, 4, 5, hidden=777)
    router = make(geometry, build_bvh(geometry), threads=2)
    states = rng.standard_normal((61, 777), dtype=np.float32)
    ids, scores, _ = router.route(states, 9)
    dense = router.scores(states)
    for begin, end in ((0, 1), (3, 5), (17, 40), (60, 61)):
        part_ids, part_scores, _ = router.route(states[begin:end], 9)
        np.testing.assert_array_equal(part_ids, ids[begin:end])
        np.testing.assert_array_equal(part_scores, scores[begin:end])
        np.testing.assert_array_equal(router.scores(states[begin:end]), dense[begin:end])


@pytest.mark.parametrize("experts", [64, 4097])
def test_same_bits_on_any_number_of_threads(rng: np.random.Generator, experts: int) -> None:
    geometry = random_geometry(rng, experts, 2, 1)
    bvh = build_bvh(geometry)
    states = rng.standard_normal((200, 40), dtype=np.float32)
    want = make(geometry, bvh, threads=1).route(states, 7)
    for threads in (2, 3, 5):
        ids, scores, _ = make(geometry, bvh, threads=threads).route(states, 7)
        np.testing.assert_array_equal(ids, want[0])
        np.testing.assert_array_equal(scores, want[1])


def test_calls_from_several_threads(rng: np.random.Generator) -> None:
    geometry = random_geometry(rng, 500)
    router = make(geometry, build_bvh(geometry), threads=2)
    states = rng.standard_normal((200, 40), dtype=np.float32)
    want = router.route(states, 7)[0]
    with ThreadPoolExecutor(4) as pool:
        for ids, _, _ in pool.map(lambda _: router.route(states, 7), range(20)):
            np.testing.assert_array_equal(ids, want)


FORK = """
import os, signal
import numpy as np
from spectral_runtime import _native
rng = np.random.default_rng(0)
draw = lambda *shape: rng.standard_normal(shape, dtype=np.float32)
router = _native.CpuRouter(draw(40), draw(3, 40), draw(1, 90, 3), draw(90, 0), draw(90), threads=3)
states = draw(200, 40)
want = router.route(states, 5)[0]
child = os.fork()
if child == 0:
    signal.alarm(20)
    os._exit(0 if (router.route(states, 5)[0] == want).all() else 1)
raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_process_routes_without_the_threads_it_lost() -> None:
    result = subprocess.run([sys.executable, "-W", "ignore", "-c", FORK], timeout=60, check=False)
    assert result.returncode == 0


@pytest.mark.parametrize("spread", [1e-30, 1e-6, 1e6, 1e15, 1e25])
@pytest.mark.parametrize("simd", native.available_simd())
def test_huge_and_tiny_radii(rng: np.random.Generator, spread: float, simd: str) -> None:
    geometry = random_geometry(rng, 300, 2, 1, spread=spread)
    router = make(geometry, build_bvh(geometry), simd=simd)
    points = rng.standard_normal((9, geometry.rank), dtype=np.float32)
    ids, scores, _ = router.route_points(points, 8, method="scan")
    assert_best(exact_scores(geometry, points), ids, scores, rounding(geometry, points))
    found, found_scores, _ = router.route_points(points, 8, method="search")
    np.testing.assert_array_equal(found, ids)
    np.testing.assert_array_equal(found_scores, scores)


@pytest.mark.parametrize("simd", native.available_simd())
@pytest.mark.parametrize("method", ["scan", "search"])
@pytest.mark.parametrize("experts", [5, 64, 3000])
def test_equal_experts_rank_by_id(rng: np.random.Generator, simd: str, method: str, experts: int) -> None:
    geometry = random_geometry(rng, experts)
    same = dataclasses.replace(
        geometry,
        centres=np.ascontiguousarray(np.broadcast_to(geometry.centres[:, :1], geometry.centres.shape)),
        beta=np.full(experts, 0.5, dtype=np.float32),
    )
    router = make(same, build_bvh(same), simd=simd)
    for count in counts_for(experts):
        ids, _, _ = router.route_points(rng.standard_normal((6, 3), dtype=np.float32), count, method=method)
        np.testing.assert_array_equal(ids, np.tile(np.arange(count, dtype=np.int32), (6, 1)))


@pytest.mark.parametrize("simd", native.available_simd())
@pytest.mark.parametrize("method", ["scan", "search"])
def test_saturated_sigmoids_tie_by_id(rng: np.random.Generator, simd: str, method: str) -> None:
    geometry = dataclasses.replace(random_geometry(rng, 500), beta=np.full(500, 60.0, dtype=np.float32))
    router = make(geometry, build_bvh(geometry), choice="sigmoid", simd=simd)
    ids, scores, _ = router.route_points(rng.standard_normal((3, 3), dtype=np.float32), 20, method=method)
    assert (scores == 1.0).all()
    np.testing.assert_array_equal(ids, np.tile(np.arange(20, dtype=np.int32), (3, 1)))


@pytest.mark.parametrize("simd", native.available_simd())
@pytest.mark.parametrize("method", ["scan", "search"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38])
def test_rows_that_are_not_finite(rng: np.random.Generator, simd: str, method: str, value: float) -> None:
    geometry = random_geometry(rng, 300, 2, 1)
    router = make(geometry, build_bvh(geometry), simd=simd)
    states = rng.standard_normal((6, 40), dtype=np.float32)
    clean = router.route(states, 20, method=method)[0]
    states[2, 7] = value
    ids, scores, _ = router.route(states, 20, method=method)
    np.testing.assert_array_equal(np.delete(ids, 2, axis=0), np.delete(clean, 2, axis=0))
    assert len(set(ids[2].tolist())) == 20
    if np.isnan(scores[2]).all():
        np.testing.assert_array_equal(ids[2], np.arange(20))


@pytest.mark.parametrize("simd", native.available_simd())
@pytest.mark.parametrize("method", ["scan", "search"])
@pytest.mark.parametrize("count", [20, 200, 400])
def test_experts_whose_score_overflows_to_nan_rank_last(
    rng: np.random.Generator, simd: str, method: str, count: int
) -> None:
    geometry = random_geometry(rng, 400)
    geometry.centres[0, ::2] = [3e38, 3e38, 0.0]  # inf - inf at the point below
    router = make(geometry, build_bvh(geometry), simd=simd)
    point = np.array([[2.0, -2.0, 0.5]], dtype=np.float32)
    ids, scores, _ = router.route_points(point, count, method=method)
    numbers = min(count, 200)
    assert (ids[0, :numbers] % 2 == 1).all()
    assert (np.diff(scores[0, :numbers]) <= 0).all()
    assert np.isnan(scores[0, numbers:]).all()
    np.testing.assert_array_equal(ids[0, numbers:], 2 * np.arange(count - numbers))


def test_empty_batch(rng: np.random.Generator) -> None:
    router = make(random_geometry(rng, 30))
    empty = np.empty((0, 40), dtype=np.float32)
    ids, scores, _ = router.route(empty, 5)
    assert ids.shape == scores.shape == (0, 5)
    assert router.scores(empty).shape == (0, 30)


def test_refusals(rng: np.random.Generator) -> None:
    geometry = random_geometry(rng, 30)
    router = make(geometry)
    states = rng.standard_normal((2, 40), dtype=np.float32)
    for count in (0, 31, 2**40):
        with pytest.raises(ConfigError, match=rf"count: expected 1 to 30 .*found {count}"):
            router.route(states, count)
    with pytest.raises(
        ConfigError, match=r"hidden: expected contiguous float32 \[any, 40\], found float32 \[2, 39\]"
    ):
        router.route(np.ascontiguousarray(states[:, 1:]), 3)
    with pytest.raises(ConfigError, match="method: expected a router with a tree"):
        router.route(states, 3, method="search")
    with pytest.raises(ConfigError, match="method: expected auto, scan or search, found walk"):
        router.route(states, 3, method="walk")
    with pytest.raises(ConfigError, match=r"simd: expected one of auto, .*portable, found sse9"):
        make(geometry, simd="sse9")
    with pytest.raises(ConfigError, match="choice: expected identity"):
        make(geometry, choice="tanh")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda first, count, experts: experts.__setitem__(3, experts[4]), "a permutation"),
        (lambda first, count, experts: experts.__setitem__(3, -1), "a permutation"),
        (lambda first, count, experts: first.__setitem__(0, 0), "children after their parent"),
        (lambda first, count, experts: first.__setitem__(0, 10**6), "children after their parent"),
        (lambda first, count, experts: first.__setitem__(0, -3), "children after their parent"),
        (lambda first, count, experts: count.__setitem__(0, -1), "children after their parent"),
        (lambda first, count, experts: count.__setitem__(0, 10**6), "leaves inside"),
        (lambda first, count, experts: count.__setitem__(-1, 1), "nodes over 100 experts"),
        (lambda first, count, experts: count.__setitem__(1, 16), "leaves inside|nodes over 100 experts"),
    ],
)
def test_refuses_what_is_not_a_tree(rng: np.random.Generator, damage: Any, message: str) -> None:
    geometry = random_geometry(rng, 100)
    bvh = build_bvh(geometry)
    arrays = bvh.first.copy(), bvh.count.copy(), bvh.experts.copy()
    damage(*arrays)
    first, count, experts = arrays
    with pytest.raises(ConfigError, match=f"bvh: expected .*({message})"):
        make(geometry, dataclasses.replace(bvh, first=first, count=count, experts=experts))


def test_wrong_bounds_in_a_file_lose_no_expert(rng: np.random.Generator) -> None:
    """The router takes the shape of the tree only, and computes the bounds itself."""
    geometry = random_geometry(rng, 300)
    bvh = build_bvh(geometry)
    damaged = dataclasses.replace(bvh, lower=np.zeros_like(bvh.lower), upper=np.zeros_like(bvh.upper))
    points = rng.standard_normal((9, 3), dtype=np.float32)
    want = make(geometry, bvh).route_points(points, 8, method="search")[0]
    np.testing.assert_array_equal(make(geometry, damaged).route_points(points, 8, method="search")[0], want)


@settings(max_examples=200, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.tuples(st.integers(1, 700), st.integers(1, 5), st.integers(0, 5)),
    leaf_size=st.integers(1, 40),
    magnitude=st.integers(-12, 12),
    score=st.sampled_from(["logits", "sigmoid", "sqrtsoftplus"]),
    biased=st.booleans(),
)
def test_search_never_misses(
    seed: int, shape: tuple[int, int, int], leaf_size: int, magnitude: int, score: str, biased: bool
) -> None:
    """Property: search equals scan bit for bit, and both are right, for any shape, scale and rule."""
    rng = np.random.default_rng(seed)
    experts = shape[0]
    geometry = random_geometry(rng, *shape, spread=10.0**magnitude)
    if rng.random() < 0.3:  # duplicates
        geometry.centres[:, experts // 2 :] = geometry.centres[:, :1]
        geometry.beta[experts // 2 :] = geometry.beta[0]
        geometry.colour[experts // 2 :] = geometry.colour[:1]
    bias = rng.standard_normal(experts, dtype=np.float32) if biased else None
    bvh = build_bvh(geometry, bias, leaf_size=leaf_size)
    choice = "identity" if score == "logits" else score
    router = make(geometry, bvh, choice=choice, choice_bias=bias, threads=1)
    points = rng.standard_normal((5, geometry.rank), dtype=np.float32)
    points *= np.float32(10.0 ** rng.integers(-6, 6))
    count = int(rng.integers(1, experts + 1))
    ids, scores, _ = router.route_points(points, count, method="scan")
    found, found_scores, _ = router.route_points(points, count, method="search")
    np.testing.assert_array_equal(found, ids)
    np.testing.assert_array_equal(found_scores, scores)
    rule = GateRule(experts=experts, top_k=1, score=score, choice_bias=biased)  # type: ignore[arg-type]
    want = exact_choice(rule, exact_scores(geometry, points), bias)
    assert_best(want, ids, scores, rounding(geometry, points) + 2e-6 * (score != "logits"))
