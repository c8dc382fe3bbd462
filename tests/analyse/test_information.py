"""Information, clusters and depth profiles find what was planted, and nothing where nothing was."""

from __future__ import annotations

import numpy as np
import pytest

from spectral_convert.analyse.clusters import adjusted_rand, cluster_experts, co_activation, silhouette
from spectral_convert.analyse.depth import depth_profile
from spectral_convert.analyse.information import (
    block_counts,
    conditional_bits,
    dependence,
    entropy,
    frequent,
    joint_counts,
    lift,
    miller_madow,
    null_of,
    plug_in,
)


def planted(rng: np.random.Generator, tokens: int, strength: float) -> tuple[np.ndarray, np.ndarray]:
    """ids [T, 1] of 8 experts that follow labels [T] of 4 kinds with probability `strength`."""
    labels = rng.integers(0, 4, tokens)
    follow = rng.random(tokens) < strength
    ids = np.where(follow, 2 * labels + rng.integers(0, 2, tokens), rng.integers(0, 8, tokens))
    return ids[:, None], labels


def test_entropy_and_information_of_a_bijection() -> None:
    joint = np.diag([5, 5, 5, 5])
    assert entropy(joint.sum(axis=0)) == pytest.approx(2.0)
    assert plug_in(joint) == pytest.approx(2.0)


def test_miller_madow_removes_the_bias_of_independence(rng: np.random.Generator) -> None:
    biased, corrected = [], []
    for _ in range(200):
        ids, labels = planted(rng, 400, 0.0)
        joint = joint_counts(ids, labels, 8, 4)
        biased.append(plug_in(joint))
        corrected.append(miller_madow(joint))
    assert np.mean(biased) > 0.03
    assert abs(np.mean(corrected)) < 0.005


@pytest.mark.parametrize("strength", [0.0, 0.6])
def test_dependence_against_its_null(rng: np.random.Generator, strength: float) -> None:
    ids, labels = planted(rng, 8000, strength)
    blocks = np.arange(8000) // 200
    counted = block_counts(ids, labels, blocks, (40, 8, 4))
    assert (counted.sum(axis=0) == joint_counts(ids, labels, 8, 4)).all()
    null = null_of([joint_counts(ids, rng.permutation(labels), 8, 4) for _ in range(60)])
    draws = rng.multinomial(40, np.full(40, 1 / 40), size=100)
    found = dependence(counted, null, draws, 8000)
    low, high = found.ci95
    assert low < found.bits < high
    if strength:
        assert found.p_value < 0.02
        assert low > 0.2
        assert found.lift_max > 2 > found.null_lift_max
    else:
        assert found.p_value > 0.02
        assert low < 0.005
        assert found.lift_max < 1.2


def test_lift_of_what_never_occurs_is_one() -> None:
    assert lift(np.array([[4, 0], [0, 0]])).tolist() == [[1.0, 1.0], [1.0, 1.0]]


def test_topic_that_is_only_vocabulary_tells_nothing_beyond_it(rng: np.random.Generator) -> None:
    tokens = rng.integers(0, 6, 20_000)
    labels = (tokens >= 3).astype(np.int64)
    ids = tokens[:, None]
    ranks, keep = frequent(tokens, 12)
    assert keep.all()
    assert miller_madow(joint_counts(ids, labels, 6, 2)) > 0.9
    assert conditional_bits(ids, labels, ranks, (6, 6, 2)) == pytest.approx(0.0, abs=1e-9)


def test_clusters_find_planted_groups_and_call_chance_chance(rng: np.random.Generator) -> None:
    tokens, blocks = 6000, np.arange(6000) // 200
    group = rng.integers(0, 3, tokens)
    first = 4 * group + rng.integers(0, 4, tokens)
    ids = np.stack([first, 4 * group + (first + 1 + rng.integers(0, 3, tokens)) % 4], axis=1)
    sizes = np.bincount(blocks)
    found = cluster_experts(co_activation(ids, blocks, 30, 12), sizes, 0)
    assert found is not None
    assert sorted(found.members) == [(0, 1, 2, 3), (4, 5, 6, 7), (8, 9, 10, 11)]
    assert found.stability > 0.95
    noise = np.stack([rng.permutation(12)[:2] for _ in range(tokens)])
    chance = cluster_experts(co_activation(noise, blocks, 30, 12), sizes, 0)
    assert chance is not None
    assert chance.stability < 0.4
    assert chance.silhouette < 0.15


def test_clusters_of_too_few_experts_are_none() -> None:
    ids = np.zeros((50, 1), np.int64)
    assert cluster_experts(co_activation(ids, np.zeros(50, int), 1, 8), np.array([50]), 0) is None


def test_adjusted_rand_and_silhouette_by_hand() -> None:
    same = np.array([1, 1, 2, 2])
    assert adjusted_rand(same, np.array([2, 2, 1, 1])) == pytest.approx(1.0)
    assert adjusted_rand(same, np.array([1, 2, 1, 2])) == pytest.approx(-0.5)
    distance = np.array([[0, 1, 4, 4], [1, 0, 4, 4], [4, 4, 0, 1], [4, 4, 1, 0]], float)
    assert silhouette(distance, same) == pytest.approx(0.75)


@pytest.mark.parametrize(
    ("values", "shape"),
    [
        ([3, 1, 0, 1, 3], "U"),
        ([0, 2, 3, 2, 0], "inverted U"),
        ([0, 1, 2, 3, 4], "rising"),
        ([4, 3, 2, 1, 0], "falling"),
        ([1, 1, 1, 1, 1], "neither"),
        ([1, 2, 3], "too few layers"),
    ],
)
def test_depth_profile(values: list[float], shape: str, rng: np.random.Generator) -> None:
    resampled = np.asarray(values) + rng.normal(0, 0.05, (200, len(values)))
    assert depth_profile(values, resampled).shape == shape


def test_a_shape_is_not_claimed_within_noise(rng: np.random.Generator) -> None:
    values = [1.0, 0.9, 0.95, 1.02]
    resampled = np.asarray(values) + rng.normal(0, 0.5, (200, 4))
    assert depth_profile(values, resampled).shape == "neither"
