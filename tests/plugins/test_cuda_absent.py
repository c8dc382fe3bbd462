"""Without a GPU the CUDA back-end is a reason, not a crash; what its kernels cannot execute is named."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys

import numpy as np
import pytest
from gpu_worlds import make_geometry

from spectral_runtime import backends, cuda
from spectral_runtime.errors import BackendUnavailable
from spectral_runtime.gate import GateRule
from spectral_runtime.router import Router

PLAIN = GateRule(experts=64, top_k=8)


def reason_with(library: str) -> str:
    """What a fresh process says when libcuda is looked for under this name."""
    code = "from spectral_runtime import backends; print(backends.unavailable('cuda'))"
    environment = {**os.environ, "SPECTRAL_LIBCUDA": library}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_a_missing_driver_is_a_reason_that_names_the_library():
    reason = reason_with("libnowhere.so.7")
    assert "libnowhere.so.7" in reason or "no CUDA kernels" in reason


def test_a_library_that_is_no_driver_is_a_reason_that_names_the_missing_symbol():
    reason = reason_with("libm.so.6")
    assert "libcuda has no cuInit" in reason or "no CUDA kernels" in reason


def test_asking_for_cuda_without_a_gpu_is_refused_with_the_reason(rng):
    if backends.unavailable("cuda") is None:
        pytest.skip("this machine has a GPU")
    with pytest.raises(BackendUnavailable, match=r"backend 'cuda'.*(driver|kernels)"):
        Router(make_geometry(rng, 8), GateRule(experts=8, top_k=2), backend="cuda")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"experts": 2048}, "more than 1024 experts"),
        ({"top_k": 33}, "more than 32 chosen"),
        ({"weight": "sparsemixer"}, "weights by sparsemixer"),
        ({"softcap": 30.0}, "bent logits"),
        ({"expert_scale": True}, "a scale per expert"),
        ({"scores": "model"}, "model's dtype"),
    ],
)
def test_rules_beyond_the_fused_kernels_have_a_reason(change, reason):
    assert cuda.unsupported(PLAIN) is None
    assert reason in (cuda.unsupported(dataclasses.replace(PLAIN, **change)) or "")


def test_the_rule_becomes_numbers():
    rule = dataclasses.replace(PLAIN, score="sigmoid", normalise=True, groups=8, groups_kept=4, scale=2.5)
    numbers = cuda.rule_numbers(rule, "bfloat16")
    assert (numbers["score"], numbers["groups_kept"], numbers["round_dtype"]) == (1, 4, 2)
    assert np.isclose(numbers["scale"], 2.5)
