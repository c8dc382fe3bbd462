"""The BVH builder: a tree over all experts, exact bounds, the same bits on any number of threads."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from oracles import assert_bounds_hold, assert_is_tree, random_geometry

from spectral_runtime import reference
from spectral_runtime.bvh import build_bvh
from spectral_runtime.errors import ConfigError
from spectral_runtime.geometry import Bvh, Geometry

SIZES = (1, 2, 3, 7, 16, 17, 64, 100, 1000, 4097)


def arrays(bvh: Bvh) -> list[np.ndarray]:
    return [getattr(bvh, field.name) for field in dataclasses.fields(Bvh)]


@pytest.mark.parametrize("experts", SIZES)
@pytest.mark.parametrize(("levels", "colours"), [(1, 0), (2, 3), (4, 12)])
def test_tree_and_bounds(rng: np.random.Generator, experts: int, levels: int, colours: int) -> None:
    geometry = random_geometry(rng, experts, levels, colours)
    bias = rng.standard_normal(experts, dtype=np.float32)
    bvh = build_bvh(geometry, bias)
    assert_is_tree(bvh, experts, 16)
    assert_bounds_hold(bvh, geometry, bias)


@pytest.mark.parametrize("leaf_size", [1, 2, 5, 16, 33, 5000])
def test_leaf_size(rng: np.random.Generator, leaf_size: int) -> None:
    bvh = build_bvh(random_geometry(rng, 1000), leaf_size=leaf_size)
    assert_is_tree(bvh, 1000, leaf_size)


def test_leaves_are_nearly_full(rng: np.random.Generator) -> None:
    bvh = build_bvh(random_geometry(rng, 4097))
    assert (bvh.count > 0).sum() <= 1.2 * 4097 / 16


@pytest.mark.parametrize("experts", [1000, 20_000])
def test_same_bits_on_any_number_of_threads(rng: np.random.Generator, experts: int) -> None:
    geometry = random_geometry(rng, experts, 2, 1)
    one = build_bvh(geometry, threads=1)
    for threads in (2, 3, 7):
        for a, b in zip(arrays(one), arrays(build_bvh(geometry, threads=threads)), strict=True):
            np.testing.assert_array_equal(a, b)


def hostile(rng: np.random.Generator, kind: str, experts: int) -> Geometry:
    geometry = random_geometry(rng, experts, 2, 1)
    centres, colour, beta = geometry.centres.copy(), geometry.colour.copy(), geometry.beta.copy()
    if kind == "equal":
        centres[:], colour[:], beta[:] = 0.25, 1.0, -2.0
    elif kind == "duplicates":
        centres[:], colour[:], beta[:] = centres[:, :1], colour[:1], beta[:1]
        centres[:, ::3] += 1.0
    elif kind == "huge":
        centres *= np.float32(1e18)
    elif kind == "tiny":
        centres *= np.float32(1e-38)
    elif kind == "geometric":  # every split peels off the outermost: the deepest tree a heuristic can build
        exponents = rng.integers(0, 140, size=centres.shape).astype(np.float32)
        centres[:], colour[:], beta[:] = np.exp2(20 - exponents), 0.0, 0.0
    return dataclasses.replace(geometry, centres=centres, colour=colour, beta=beta)


@pytest.mark.parametrize("kind", ["equal", "duplicates", "huge", "tiny", "geometric"])
@pytest.mark.parametrize("experts", [2, 17, 3000, 20_000])
def test_hostile_spheres_stay_shallow(rng: np.random.Generator, kind: str, experts: int) -> None:
    geometry = hostile(rng, kind, experts)
    bvh = build_bvh(geometry)
    assert assert_is_tree(bvh, experts, 16) <= 63
    if experts <= 3000 and kind != "huge":
        assert_bounds_hold(bvh, geometry, None)


@pytest.mark.parametrize("field", ["centres", "colour", "beta"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_refuses_what_is_not_finite(rng: np.random.Generator, field: str, value: float) -> None:
    geometry = random_geometry(rng, 40, 2, 2)
    damaged = getattr(geometry, field).copy()
    damaged.flat[-1] = value
    with pytest.raises(ConfigError, match=rf"{field}.*expected finite numbers, found -?(nan|inf)"):
        build_bvh(dataclasses.replace(geometry, **{field: damaged}))


def test_refuses_a_bias_that_is_not_finite(rng: np.random.Generator) -> None:
    bias = np.full(40, np.nan, dtype=np.float32)
    with pytest.raises(ConfigError, match=r"choice_bias.*expected finite numbers"):
        build_bvh(random_geometry(rng, 40), bias)


def test_refuses_wrong_arrays(rng: np.random.Generator) -> None:
    geometry = random_geometry(rng, 40)
    with pytest.raises(ConfigError, match="leaf_size: expected at least 1, found 0"):
        build_bvh(geometry, leaf_size=0)
    with pytest.raises(ConfigError, match=r"beta: expected contiguous float32 \[40\], found float32 \[39\]"):
        build_bvh(dataclasses.replace(geometry, beta=geometry.beta[:-1]))
    with pytest.raises(ConfigError, match=r"centres: expected contiguous float32 .*, found float64"):
        build_bvh(dataclasses.replace(geometry, centres=geometry.centres.astype(np.float64)))
    strided = np.asfortranarray(geometry.centres)
    with pytest.raises(ConfigError, match=r"centres: expected contiguous .* found strided"):
        build_bvh(dataclasses.replace(geometry, centres=strided))


def test_reference_builder_makes_trees_too(rng: np.random.Generator) -> None:
    for experts in (1, 2, 17, 300):
        geometry = random_geometry(rng, experts, 2, 3)
        bias = rng.standard_normal(experts, dtype=np.float32)
        bvh = reference.build_tree(geometry, bias, 16)
        assert_is_tree(bvh, experts, 16)
        assert_bounds_hold(bvh, geometry, bias)


def test_search_visits_less_of_this_tree_than_of_a_median_split(rng: np.random.Generator) -> None:
    """The reason to pay for a surface heuristic, measured by the reference's own traversal."""
    from spectral_runtime.gate import GateRule

    geometry = random_geometry(rng, 1000)
    rule = GateRule(experts=1000, top_k=8)
    points = rng.standard_normal((40, 3), dtype=np.float32)
    trees = build_bvh(geometry), reference.build_tree(geometry, None, 16)
    ours, median = (
        sum(reference.search(geometry, tree, rule, point, count=8).leaves for point in points)
        for tree in trees
    )
    assert ours < median
