"""Interleaved timing of several arms, and the description of the machine that goes with every figure."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

EVIDENCE = Path(__file__).parent / "evidence"
PACKAGES = ("numpy", "torch", "scipy", "pykdtree", "spectral-moe")


@dataclass(frozen=True, slots=True)
class Sample:
    """One call: seconds on the wall clock, and of the calling thread on a processor."""

    wall: float
    thread: float


def time_interleaved(
    arms: Mapping[str, Callable[[], Any]], *, seconds: float = 1.0, least: int = 5, most: int = 200
) -> dict[str, list[Sample]]:
    """Times of every call of every arm.

    All arms run once a round, in another order each round: a busy machine, and the cache that the arm before
    leaves behind, hit all alike.

    Args:
        arms: calls without arguments; each runs twice before the clock starts.
        seconds: rounds stop after this long.
        least: rounds at least.
        most: rounds at most.
    """
    for call in arms.values():
        call()
        call()
    samples: dict[str, list[Sample]] = {name: [] for name in arms}
    order = np.random.default_rng(0)
    start = time.perf_counter()
    for done in range(most):
        if done >= least and time.perf_counter() - start > seconds:
            break
        for name in order.permutation(list(arms)):
            samples[name].append(_time(arms[name]))
    return samples


def _time(call: Callable[[], Any]) -> Sample:
    thread = time.thread_time()
    wall = time.perf_counter()
    call()
    wall = time.perf_counter() - wall
    return Sample(wall, time.thread_time() - thread)


def summary(samples: list[Sample], tokens: int) -> dict[str, float]:
    """Median, 90th percentile and minimum of the wall clock and the median of thread time, all in us a token.

    Where others use the machine, the wall clock of a long call holds their turns too; thread time does not.
    """
    wall = np.array([sample.wall for sample in samples]) / tokens * 1e6
    thread = np.array([sample.thread for sample in samples]) / tokens * 1e6
    return {
        "median_us": round(float(np.median(wall)), 4),
        "p90_us": round(float(np.percentile(wall, 90)), 4),
        "min_us": round(float(wall.min()), 4),
        "thread_us": round(float(np.median(thread)), 4),
        "rounds": len(samples),
    }


def machine() -> dict[str, Any]:
    """Processor, cores, load and versions; nothing that names the host."""
    return {
        "cpu": _cpu_name(),
        "instruction_sets": _simd(),
        "cores": os.cpu_count(),
        "load_average": [round(x, 2) for x in os.getloadavg()],
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
    }


def write_evidence(name: str, content: Mapping[str, Any]) -> None:
    """Writes `evidence/<name>.json`, machine first."""
    EVIDENCE.mkdir(exist_ok=True)
    text = json.dumps({"machine": machine(), **content}, indent=1)
    (EVIDENCE / f"{name}.json").write_text(text + "\n", encoding="utf-8")


def _cpu_name() -> str:
    lines = (
        Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        if Path("/proc/cpuinfo").exists()
        else []
    )
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _simd() -> list[str]:
    from spectral_runtime import _native

    return _native.available_simd()


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "absent"
