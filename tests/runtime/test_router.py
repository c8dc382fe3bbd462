"""`Router` on every back-end from one list, against brute force."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from oracles import assert_best, exact_choice, exact_points, exact_scores, random_geometry, rounding

import spectral_runtime
from spectral_runtime import backends
from spectral_runtime.bvh import build_bvh
from spectral_runtime.errors import BackendUnavailable, ConfigError
from spectral_runtime.gate import GateRule, Score, expert_scores
from spectral_runtime.router import Router

SIZES = (1, 2, 3, 7, 64, 100, 1000, 4097)
SHAPES = ((1, 0), (2, 5), (4, 12), (5, 0))
RULES: list[tuple[Score, bool]] = [
    ("softmax", False),
    ("softmax", True),
    ("logits", False),
    ("sigmoid", False),
    ("sigmoid", True),
    ("sqrtsoftplus", True),
]


@pytest.fixture(params=backends.BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    """Every back-end by name; one that cannot run here skips with its reason."""
    name: str = request.param
    reason = backends.unavailable(name)
    if reason is not None:
        pytest.skip(f"{name}: {reason}")
    return name


def odd_counts(experts: int) -> set[int]:
    return {1, min(5, experts), min(17, experts), experts}


@pytest.mark.parametrize("experts", SIZES)
@pytest.mark.parametrize("shape", SHAPES)
def test_candidates(rng: np.random.Generator, backend: str, experts: int, shape: tuple[int, int]) -> None:
    geometry = random_geometry(rng, experts, *shape)
    rule = GateRule(experts=experts, top_k=1)
    router = Router(geometry, rule, build_bvh(geometry), backend=backend, threads=1)
    hidden = rng.standard_normal((7, 40), dtype=np.float32)
    points = exact_points(geometry, hidden)
    for count in odd_counts(experts):
        ids, scores = router.candidates(hidden, count)
        assert_best(exact_scores(geometry, points), ids, scores, 4 * rounding(geometry, points))


@pytest.mark.parametrize(("score", "biased"), RULES)
@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("experts", [7, 3000])
def test_every_rule(
    rng: np.random.Generator, backend: str, score: Score, biased: bool, centred: bool, experts: int
) -> None:
    geometry = random_geometry(rng, experts, 2, 1)
    common = rng.standard_normal(40, dtype=np.float32) if centred else None
    geometry = dataclasses.replace(geometry, common=common)
    bias = rng.standard_normal(experts, dtype=np.float32) * np.float32(0.1) if biased else None
    rule = GateRule(experts=experts, top_k=2, score=score, choice_bias=biased)
    router = Router(geometry, rule, build_bvh(geometry, bias), choice_bias=bias, backend=backend)
    hidden = rng.standard_normal((7, 40), dtype=np.float32)
    points = exact_points(geometry, hidden)
    logits = exact_scores(geometry, points)
    if centred and score in ("sigmoid", "sqrtsoftplus"):
        logits = logits + ((hidden.astype(np.float64) - geometry.mean) @ common.astype(np.float64))[:, None]
    if score == "softmax" and biased:
        choice = expert_scores(rule, logits.astype(np.float32)).astype(np.float64) + bias
    else:
        choice = exact_choice(rule, logits, bias)
    ids, scores = router.candidates(hidden, 5)
    assert_best(choice, ids, scores, 16 * rounding(geometry, points) + 1e-5)


def test_scores_include_the_common_mode(rng: np.random.Generator, backend: str) -> None:
    geometry = dataclasses.replace(
        random_geometry(rng, 30, 2, 3), common=rng.standard_normal(40, dtype=np.float32)
    )
    router = Router(geometry, GateRule(experts=30, top_k=1), backend=backend)
    hidden = rng.standard_normal((5, 40), dtype=np.float32)
    centred = hidden.astype(np.float64) - geometry.mean
    want = exact_scores(geometry, exact_points(geometry, hidden)) + (centred @ geometry.common)[:, None]
    scores = router.scores(hidden)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, want, rtol=1e-4, atol=1e-4)


def test_duplicates_rank_by_id(rng: np.random.Generator, backend: str) -> None:
    geometry = random_geometry(rng, 50)
    twins = dataclasses.replace(
        geometry,
        centres=np.repeat(geometry.centres[:, :10], 5, axis=1),
        beta=np.repeat(geometry.beta[:10], 5),
    )
    router = Router(twins, GateRule(experts=50, top_k=1), build_bvh(twins), backend=backend)
    ids, _ = router.candidates(rng.standard_normal((9, 40), dtype=np.float32), 50)
    groups = ids.reshape(9, 10, 5)
    np.testing.assert_array_equal(groups - groups[..., :1], np.tile(np.arange(5), (9, 10, 1)))


@pytest.mark.parametrize("count", [1, 8, 40])
def test_nan_rows_rank_by_id_and_leave_the_others_alone(
    rng: np.random.Generator, backend: str, count: int
) -> None:
    geometry = random_geometry(rng, 40, 2, 1)
    router = Router(geometry, GateRule(experts=40, top_k=1), build_bvh(geometry), backend=backend)
    hidden = rng.standard_normal((4, 40), dtype=np.float32)
    clean, _ = router.candidates(hidden, count)
    hidden[1, 3] = np.nan
    ids, scores = router.candidates(hidden, count)
    np.testing.assert_array_equal(np.delete(ids, 1, axis=0), np.delete(clean, 1, axis=0))
    np.testing.assert_array_equal(ids[1], np.arange(count))
    assert np.isnan(scores[1]).all()


def test_empty_batch(rng: np.random.Generator, backend: str) -> None:
    router = Router(random_geometry(rng, 9), GateRule(experts=9, top_k=1), backend=backend)
    ids, scores = router.candidates(np.empty((0, 40), dtype=np.float32), 3)
    assert ids.shape == scores.shape == (0, 3)
    assert router.scores(np.empty((0, 40), dtype=np.float32)).shape == (0, 9)


def test_other_dtypes_and_strides_are_converted(rng: np.random.Generator, backend: str) -> None:
    router = Router(random_geometry(rng, 9), GateRule(experts=9, top_k=1), backend=backend)
    hidden = rng.standard_normal((6, 40), dtype=np.float32)
    want, _ = router.candidates(hidden, 3)
    np.testing.assert_array_equal(router.candidates(np.asfortranarray(hidden.astype(np.float64)), 3)[0], want)


@pytest.mark.parametrize("count", [0, -1, 10])
def test_counts_out_of_range(rng: np.random.Generator, backend: str, count: int) -> None:
    router = Router(random_geometry(rng, 9), GateRule(experts=9, top_k=1), backend=backend)
    with pytest.raises(ConfigError, match=rf"candidates.count: expected 1 to 9 .*found {count}"):
        router.candidates(np.zeros((1, 40), dtype=np.float32), count)


def test_wrong_width(rng: np.random.Generator, backend: str) -> None:
    router = Router(random_geometry(rng, 9), GateRule(experts=9, top_k=1), backend=backend)
    with pytest.raises(ConfigError, match=r"hidden: expected shape \[T, 40\], found \[1, 41\]"):
        router.candidates(np.zeros((1, 41), dtype=np.float32), 1)


def test_arguments_that_do_not_fit(rng: np.random.Generator) -> None:
    geometry = random_geometry(rng, 9)
    bias = np.zeros(9, dtype=np.float32)
    biased = GateRule(experts=9, top_k=1, score="sigmoid", choice_bias=True)
    with pytest.raises(ConfigError, match="geometry: expected 8 experts, as the rule, found 9"):
        Router(geometry, GateRule(experts=8, top_k=1))
    with pytest.raises(ConfigError, match="choice_bias: expected float32"):
        Router(geometry, biased)
    with pytest.raises(ConfigError, match="choice_bias: expected nothing"):
        Router(geometry, GateRule(experts=9, top_k=1), choice_bias=bias)
    with pytest.raises(ConfigError, match="threads: expected at least 1, found 0"):
        Router(geometry, GateRule(experts=9, top_k=1), threads=0)


def test_backends_answer_alike(rng: np.random.Generator) -> None:
    """All that can run here, on one layer, against the reference."""
    geometry = random_geometry(rng, 500, 3, 2)
    rule = GateRule(experts=500, top_k=1)
    hidden = rng.standard_normal((50, 40), dtype=np.float32)
    _, want = Router(geometry, rule, backend="reference").candidates(hidden, 12)
    for name in spectral_runtime.available_backends():
        _, scores = Router(geometry, rule, build_bvh(geometry), backend=name).candidates(hidden, 12)
        np.testing.assert_allclose(scores, want, rtol=1e-4, atol=1e-4)


def test_unknown_and_absent_backends(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    geometry, rule = random_geometry(rng, 9), GateRule(experts=9, top_k=1)
    with pytest.raises(
        ConfigError, match="backend: expected one of auto, optix, cuda, cpu, reference, found 'tpu'"
    ):
        Router(geometry, rule, backend="tpu")
    monkeypatch.setattr("spectral_runtime.cpu.unavailable", lambda: "no such processor")
    with pytest.raises(
        BackendUnavailable, match=r"backend 'cpu': found no such processor.*available here: .*reference"
    ):
        Router(geometry, rule, backend="cpu")
    assert Router(geometry, rule).backend == "reference"


def test_auto_prefers_the_native_core(rng: np.random.Generator) -> None:
    if backends.unavailable("cpu") is not None:
        pytest.skip("the native core is not built")
    assert Router(random_geometry(rng, 9), GateRule(experts=9, top_k=1)).backend == "cpu"
