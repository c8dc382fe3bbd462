"""Fixtures that every test may use."""

from __future__ import annotations

import numpy as np
import pytest


@pytest.fixture
def rng() -> np.random.Generator:
    """The one source of random numbers: seeded, so that a failure comes back."""
    return np.random.default_rng(20_241_122)
