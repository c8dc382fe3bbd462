"""Adaptive candidate sets: torch and numpy keep the same experts, K at least, none beyond the cap."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from spectral_runtime import reference
from spectral_runtime.attaching.candidates import candidate_mask, order_scores
from spectral_runtime.gate import GateRule, anchor_ranks


@pytest.mark.parametrize("top_k", [1, 2, 3, 8, 16])
@pytest.mark.parametrize("margin", [-10.0, -0.1, 0.0, 0.4, 50.0])
def test_torch_keeps_what_numpy_keeps(top_k: int, margin: float, rng: np.random.Generator) -> None:
    rule = GateRule(experts=16, top_k=top_k)
    cap = max(anchor_ranks(rule, 16)[1], 10)
    order = rng.standard_normal((200, 16)).astype(np.float32)
    mask = candidate_mask(rule, torch.from_numpy(order), cap, margin)
    ids, ranked = reference.best(order, cap)
    keep = reference.within_margin(rule, ranked, margin)
    expected = np.zeros_like(order, dtype=bool)
    np.put_along_axis(expected, ids.astype(np.int64), keep, axis=1)
    assert np.array_equal(mask.numpy(), expected)
    sizes = mask.sum(dim=1)
    assert sizes.min() >= top_k
    assert sizes.max() <= cap
    if margin < -5:
        assert (sizes == top_k).all()
    if margin > 5:
        assert (sizes == cap).all()


def test_without_a_margin_all_sets_have_one_size(rng: np.random.Generator) -> None:
    order = torch.from_numpy(rng.standard_normal((50, 16)).astype(np.float32))
    assert (candidate_mask(GateRule(experts=16, top_k=4), order, 6).sum(dim=1) == 6).all()


def test_anchor_is_around_the_kth() -> None:
    ranks = {k: anchor_ranks(GateRule(experts=64, top_k=k), 64) for k in (1, 2, 6, 8, 64)}
    assert ranks == {1: (0, 1), 2: (1, 3), 6: (3, 9), 8: (4, 12), 64: (32, 64)}


def test_order_is_that_of_the_reference(rng: np.random.Generator) -> None:
    scores = rng.standard_normal((20, 16)).astype(np.float32)
    bias = rng.standard_normal(16).astype(np.float32)
    for rule, b in (
        (GateRule(experts=16, top_k=4), None),
        (GateRule(experts=16, top_k=4, score="sigmoid", choice_bias=True), bias),
        (GateRule(experts=16, top_k=4, score="softmax", choice_bias=True), bias),
    ):
        ours = order_scores(rule, torch.from_numpy(scores), None if b is None else torch.from_numpy(b))
        assert np.allclose(ours.numpy(), reference.choice_scores(rule, scores, b), atol=1e-6)
