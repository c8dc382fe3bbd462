"""The OptiX programs' search, compiled for the CPU: boxes one by one where a ray tracer would traverse them."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gpu_worlds import assert_same_list, make_geometry

from spectral_runtime import reference
from spectral_runtime.cuda import SCORES
from spectral_runtime.gate import GateRule
from spectral_runtime.geometry import Floats, Geometry, Ints

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The harness as a ctypes library."""
    compiler = shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    library = tmp_path_factory.mktemp("optix") / "search.so"
    plugins = ROOT / "plugins"
    folders = [plugins / "optix", plugins / "cuda", plugins / "core" / "include"]
    sources = [ROOT / "tests" / "plugins" / "optix_harness.cpp", plugins / "optix" / "sphere_shells.cpp"]
    options = ["-std=c++20", "-O2", "-shared", "-fPIC", *(f"-I{folder}" for folder in folders)]
    subprocess.run([compiler, *options, *map(str, sources), "-o", str(library)], check=True)
    loaded = ctypes.CDLL(str(library))
    loaded.build.restype = ctypes.c_void_p
    return loaded


def _address(array: np.ndarray[Any, Any] | None) -> int | None:
    return None if array is None else array.ctypes.data


class Search:
    """One geometry in the harness."""

    def __init__(self, programs: Any, geometry: Geometry, bias: Floats | None = None) -> None:
        self.programs = programs
        self.kept = (geometry.centres, geometry.colour, geometry.beta, bias)
        arrays = (ctypes.c_void_p * 4)(*(_address(array) for array in self.kept))
        sizes = (ctypes.c_int64 * 3)(geometry.experts, geometry.levels, geometry.colours)
        self.handle = ctypes.c_void_p(programs.build(arrays, sizes))
        self.shells = int(programs.shell_count(self.handle))

    def __del__(self) -> None:
        self.programs.release(self.handle)

    def candidates(
        self, points: Floats, count: int, score: str = "softmax", times: int = 1
    ) -> tuple[Ints, Floats, Ints]:
        """Ids and scores [T, C], and [T, 2]: experts scored, structures traversed (-1: scanned)."""
        ids = np.empty((len(points), count), np.int32)
        scores = np.empty((len(points), count), np.float32)
        work = np.empty((len(points), 2), np.int32)
        how = (ctypes.c_int32 * 3)(count, SCORES.index(score), times)
        arrays = [ctypes.c_void_p(array.ctypes.data) for array in (ids, scores, work)]
        points = np.ascontiguousarray(points, np.float32)
        self.programs.route(
            self.handle, ctypes.c_void_p(points.ctypes.data), ctypes.c_int64(len(points)), how, *arrays
        )
        return ids, scores, work


def compare(geometry, points, found, *, rule=None, bias=None):
    """The list is the reference's."""
    rule = rule or GateRule(experts=geometry.experts, top_k=found[0].shape[1])
    choice = reference.choice_scores(rule, reference.point_scores(geometry, points), bias)
    assert_same_list(choice, found)


@pytest.mark.parametrize("experts", [1, 2, 31, 33, 257, 4099, 65_536])
@pytest.mark.parametrize("count", [1, 7, 32])
def test_the_list_is_that_of_the_reference(rng, programs, experts, count):
    geometry = make_geometry(rng, experts)
    points = rng.standard_normal((40, 3)).astype(np.float32)
    found = Search(programs, geometry).candidates(points, min(count, experts))
    compare(geometry, points, found[:2])


@pytest.mark.parametrize(("levels", "colours"), [(1, 5), (2, 0), (3, 32), (4, 0), (4, 32)])
@pytest.mark.parametrize("score", ["softmax", "sigmoid", "sqrtsoftplus"])
def test_levels_colours_and_choice_rules(rng, programs, levels, colours, score):
    geometry = make_geometry(rng, 3000, levels=levels, colours=colours, scale=0.3)
    bias = (rng.standard_normal(3000) * 0.1).astype(np.float32) if score != "softmax" else None
    points = rng.standard_normal((33, geometry.rank)).astype(np.float32)
    found = Search(programs, geometry, bias).candidates(points, 32, score)
    rule = GateRule(experts=3000, top_k=8, score=score, choice_bias=bias is not None)
    compare(geometry, points, found[:2], rule=rule, bias=bias)


@pytest.mark.parametrize("scale", [1e-18, 1e-6, 1.0, 1e6, 1e15, 1e25])
@pytest.mark.parametrize("reach", [1e-3, 1.0, 1e3])
def test_points_and_spheres_of_any_size(rng, programs, scale, reach):
    geometry = make_geometry(rng, 500, scale=scale)
    points = (rng.standard_normal((30, 3)) * reach).astype(np.float32)
    compare(geometry, points, Search(programs, geometry).candidates(points, 8)[:2])


def test_calling_twice_for_a_primitive_changes_nothing(rng, programs):
    geometry = make_geometry(rng, 800, levels=2)
    points = rng.standard_normal((50, 6)).astype(np.float32)
    search = Search(programs, geometry)
    once, thrice = search.candidates(points, 16), search.candidates(points, 16, times=3)
    assert (once[0] == thrice[0]).all()
    assert (thrice[2][:, 0] >= once[2][:, 0]).all()


def test_duplicates_are_ordered_by_id(rng, programs):
    geometry = make_geometry(rng, 300)
    geometry.centres[:] = geometry.centres[:, :1]
    geometry.beta[:] = geometry.beta[0]
    ids, _, _ = Search(programs, geometry).candidates(rng.standard_normal((9, 3)).astype(np.float32), 8)
    assert (ids == np.arange(8)).all()


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf, 3e38])
def test_points_that_no_ray_may_have_are_scanned(rng, programs, broken):
    geometry = make_geometry(rng, 300)
    points = rng.standard_normal((4, 3)).astype(np.float32)
    points[1, 2] = broken
    ids, scores, work = Search(programs, geometry).candidates(points, 8)
    assert list(work[:, 1] == -1) == [False, True, False, False]
    if np.isnan(broken):
        assert (ids[1] == np.arange(8)).all()
        assert np.isnan(scores[1]).all()


def test_experts_that_are_not_finite_are_never_traversed(rng, programs):
    geometry = make_geometry(rng, 300)
    geometry.centres[0, 7, 1] = np.nan
    search = Search(programs, geometry)
    points = rng.standard_normal((4, 3)).astype(np.float32)
    assert search.shells == 0
    compare(geometry, points, search.candidates(points, 8)[:2])


def clustered(rng, experts, levels, colours=0):
    """Experts in 64 clusters whose exact logit is minus a squared distance, and points of the same clusters."""
    rank = 3 * levels + colours
    middles = rng.standard_normal((64, rank))

    def draw(count):
        return (middles[rng.integers(64, size=count)] + 0.2 * rng.standard_normal((count, rank))).astype("f4")

    geometry, centres = make_geometry(rng, experts, levels=levels, colours=colours), draw(experts)
    geometry.centres[:] = centres[:, : 3 * levels].reshape(experts, levels, 3).transpose(1, 0, 2)
    geometry.colour[:] = 2 * centres[:, 3 * levels :]
    geometry.beta[:] = -(centres**2).sum(axis=1)
    return geometry, draw(60)


@pytest.mark.parametrize(("levels", "share"), [(1, 0.01), (2, 0.1), (4, 0.3)])
def test_level_1_enumerates_a_small_share_of_clustered_experts(rng, programs, levels, share):
    geometry, points = clustered(rng, 20_000, levels)
    found = Search(programs, geometry).candidates(points, 8)
    compare(geometry, points, found[:2])
    assert found[2][:, 0].mean() < share * 20_000
    assert (found[2][:, 1] < 0).mean() < 0.1
