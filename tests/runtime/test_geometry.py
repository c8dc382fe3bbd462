"""The spheres of a geometry rank experts exactly as its widened linear score does."""

from __future__ import annotations

import numpy as np
import pytest
from pico_bundles import make_geometry

from spectral_runtime.geometry import Geometry, directions, sphere_radii, widened


def scores_of(geometry: Geometry, hidden: np.ndarray) -> np.ndarray:
    """The definition, [T, E]: 2 centre . point summed over levels, colour . code, beta; no common row."""
    centred = hidden.astype(np.float64) - geometry.mean
    total = np.tile(geometry.beta.astype(np.float64), (len(hidden), 1))
    for level in range(geometry.levels):
        points = centred @ geometry.projection[3 * level : 3 * level + 3].T
        total += 2 * points @ geometry.centres[level].T
    return total + centred @ geometry.projection[3 * geometry.levels :].T @ geometry.colour.T


@pytest.mark.parametrize("experts", [1, 2, 64, 257])
def test_power_of_one_level_ranks_as_the_score(rng: np.random.Generator, experts: int) -> None:
    geometry = make_geometry(rng, experts, hidden=16)
    hidden = rng.standard_normal((200, 16)).astype(np.float32)
    points = (hidden.astype(np.float64) - geometry.mean) @ geometry.projection.T
    radii = sphere_radii(geometry)[0].astype(np.float64)
    power = radii**2 - np.square(points[:, None] - geometry.centres[0]).sum(axis=-1)
    difference = power - scores_of(widened(geometry), hidden)
    # The two differ by one number per token, so that they rank alike.
    np.testing.assert_allclose(difference, np.tile(difference[:, :1], experts), atol=1e-4)


def test_powers_of_all_levels_sum_to_the_score(rng: np.random.Generator) -> None:
    geometry = make_geometry(rng, 32, hidden=16, levels=4)
    hidden = rng.standard_normal((50, 16)).astype(np.float32)
    projected = ((hidden.astype(np.float64) - geometry.mean) @ geometry.projection.T).reshape(50, 4, 3)
    distance = np.square(projected.transpose(1, 0, 2)[:, :, None] - geometry.centres[:, None]).sum(axis=-1)
    power = (sphere_radii(geometry).astype(np.float64)[:, None] ** 2 - distance).sum(axis=0)
    difference = power - scores_of(widened(geometry), hidden)
    np.testing.assert_allclose(difference, np.tile(difference[:, :1], 32), atol=1e-4)


def test_radii_are_real_and_the_smallest_is_zero(rng: np.random.Generator) -> None:
    radii = sphere_radii(make_geometry(rng, 64, hidden=8, levels=3))
    assert radii.shape == (3, 64)
    assert radii.dtype == np.float32
    assert (radii >= 0).all()
    np.testing.assert_array_equal(radii.min(axis=1), 0)


def test_beta_moves_level_one_only(rng: np.random.Generator) -> None:
    geometry = make_geometry(rng, 8, hidden=8, levels=2)
    before = sphere_radii(geometry)
    geometry.beta[:] += np.arange(8, dtype=np.float32)
    after = sphere_radii(geometry)
    assert (before[0] != after[0]).any()
    np.testing.assert_array_equal(before[1], after[1])


def test_directions_are_the_linear_coefficients(rng: np.random.Generator) -> None:
    geometry = make_geometry(rng, 16, hidden=8, levels=2, colour=3)
    hidden = rng.standard_normal((20, 8)).astype(np.float32)
    reduced = (hidden.astype(np.float64) - geometry.mean) @ geometry.projection.T
    linear = reduced @ directions(geometry).T + geometry.beta
    np.testing.assert_allclose(linear, scores_of(geometry, hidden), atol=1e-5)
    assert directions(geometry).shape == (16, geometry.rank) == (16, 9)
