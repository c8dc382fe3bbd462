"""The reference router: its own steps against brute force, and its traversal against its full sort."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from oracles import assert_best, exact_choice, exact_points, exact_scores, random_geometry, rounding

from spectral_runtime import reference
from spectral_runtime.bvh import build_bvh
from spectral_runtime.gate import GateRule, Score

RULES: list[tuple[Score, bool]] = [
    ("softmax", False),
    ("logits", True),
    ("sigmoid", True),
    ("sqrtsoftplus", False),
]


@pytest.mark.parametrize(("score", "biased"), RULES)
@pytest.mark.parametrize("experts", [1, 7, 200])
@pytest.mark.parametrize(("levels", "colours"), [(1, 0), (3, 4)])
def test_candidates_by_full_sort(
    rng: np.random.Generator, score: Score, biased: bool, experts: int, levels: int, colours: int
) -> None:
    geometry = random_geometry(rng, experts, levels, colours)
    bias = rng.standard_normal(experts, dtype=np.float32) if biased else None
    rule = GateRule(experts=experts, top_k=1, score=score, choice_bias=biased)
    hidden = rng.standard_normal((11, 40), dtype=np.float32)
    points = exact_points(geometry, hidden)
    choice = exact_choice(rule, exact_scores(geometry, points), bias)
    for count in {1, min(5, experts), experts}:
        ids, scores = reference.candidates(geometry, rule, hidden, count, bias)
        assert_best(choice, ids, scores, 4 * rounding(geometry, points) + 2e-6)


@pytest.mark.parametrize(("score", "biased"), RULES)
@pytest.mark.parametrize("count", [1, 5, 60])
@pytest.mark.parametrize("native_tree", [True, False])
def test_search_finds_what_the_sort_finds(
    rng: np.random.Generator, score: Score, biased: bool, count: int, native_tree: bool
) -> None:
    geometry = random_geometry(rng, 60, 2, 3)
    bias = rng.standard_normal(60, dtype=np.float32) if biased else None
    bvh = build_bvh(geometry, bias, leaf_size=4) if native_tree else reference.build_tree(geometry, bias, 4)
    rule = GateRule(experts=60, top_k=1, score=score, choice_bias=biased)
    hidden = rng.standard_normal((6, 40), dtype=np.float32)
    ids, scores = reference.candidates(geometry, rule, hidden, count, bias)
    for token, point in enumerate(reference.project(geometry, hidden)):
        found = reference.search(geometry, bvh, rule, point, count=count, choice_bias=bias)
        np.testing.assert_array_equal(found.ids, ids[token])
        np.testing.assert_allclose(found.scores, scores[token], rtol=1e-5, atol=1e-5)


def test_a_bound_is_never_below_an_expert(rng: np.random.Generator) -> None:
    geometry = random_geometry(rng, 200, 2, 3)
    bvh = build_bvh(geometry, leaf_size=4)
    rule = GateRule(experts=200, top_k=1)
    for scale in (1e-4, 1.0, 1e4):
        point = rng.standard_normal(9, dtype=np.float32) * np.float32(scale)
        scores = exact_scores(geometry, point[None].astype(np.float64))[0]
        below: dict[int, np.ndarray] = {}
        for node in range(bvh.nodes - 1, -1, -1):
            first, count = int(bvh.first[node]), int(bvh.count[node])
            below[node] = (
                bvh.experts[first : first + count] if count else np.append(below[first], below[first + 1])
            )
            assert reference.node_bound(geometry, bvh, rule, point, node) >= scores[below[node]].max()


def test_both_bounds_cut_more_than_the_interval_alone(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    geometry = random_geometry(rng, 600)
    bvh = build_bvh(geometry)
    rule = GateRule(experts=600, top_k=8)
    points = rng.standard_normal((30, 3), dtype=np.float32)

    def leaves() -> int:
        return sum(reference.search(geometry, bvh, rule, point, count=8).leaves for point in points)

    both = leaves()
    with monkeypatch.context() as patch:
        patch.setattr(reference.np, "fmin", lambda interval, power: interval)
        interval_alone = leaves()
    assert both < interval_alone


def test_nan_ranks_last_and_by_id() -> None:
    choice = np.array([[np.nan, -np.inf, 2.0, np.nan, 2.0]], dtype=np.float32)
    ids, scores = reference.best(choice, 5)
    assert ids.tolist() == [[2, 4, 1, 0, 3]]
    assert np.isnan(scores[0, 3:]).all()


def test_common_mode_moves_all_scores_of_a_token_alike(rng: np.random.Generator) -> None:
    plain = random_geometry(rng, 9)
    common = rng.standard_normal(40, dtype=np.float32)
    hidden = rng.standard_normal((4, 40), dtype=np.float32)
    moved = reference.scores(dataclasses.replace(plain, common=common), hidden) - reference.scores(
        plain, hidden
    )
    want = (hidden - plain.mean) @ common
    np.testing.assert_allclose(moved, np.tile(want[:, None], 9), rtol=1e-4, atol=1e-4)


def test_choice_scores_of_a_biased_softmax_need_all_experts(rng: np.random.Generator) -> None:
    rule = GateRule(experts=3, top_k=1, choice_bias=True)
    logits = np.array([[1.0, 0.0, -1.0]], dtype=np.float32)
    bias = np.array([0.0, 0.5, 0.7], dtype=np.float32)
    np.testing.assert_allclose(
        reference.choice_scores(rule, logits, bias), [[0.66524, 0.744728, 0.790031]], rtol=1e-5
    )
    assert not reference.separable(rule, random_geometry(rng, 3), bias)
