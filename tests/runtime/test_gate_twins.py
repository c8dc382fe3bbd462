"""The torch twin of `select_experts` does what the numpy one does, for every kind of rule."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from spectral_runtime.attaching import selection
from spectral_runtime.gate import GateRule, select_experts

RULES = {
    "softmax": GateRule(experts=12, top_k=3, normalise=True, scale=2.5),
    "logits": GateRule(experts=12, top_k=3, score="logits", weight="softmax"),
    "sigmoid groups": GateRule(
        experts=12, top_k=3, score="sigmoid", choice_bias=True, groups=4, groups_kept=2, normalise=True
    ),
    "zero-filled groups": GateRule(
        experts=12, top_k=3, groups=4, groups_kept=2, group_score="max", group_fill="zero"
    ),
    "soft cap": GateRule(experts=12, top_k=3, score="sigmoid", choice_bias=True, softcap=1.5, normalise=True),
    "logit scale": GateRule(experts=12, top_k=3, score="logits", weight="sigmoid", logit_scale=0.25),
    "sparsemixer": GateRule(experts=12, top_k=2, score="logits", weight="sparsemixer", threshold=0.3),
    "sqrtsoftplus": GateRule(experts=12, top_k=3, score="sqrtsoftplus", choice_bias=True, scores="model"),
}


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("masked", [False, True])
def test_twins_agree(name: str, masked: bool, rng: np.random.Generator) -> None:
    rule = RULES[name]
    logits = rng.standard_normal((200, 12)).astype(np.float32) * 2
    bias = rng.uniform(-0.1, 0.1, 12).astype(np.float32) if rule.choice_bias else None
    mask = rng.random((200, 12)) < 0.7 if masked and rule.groups == 1 else None
    if mask is not None:
        mask[:, :3] = True
    ids, weights = select_experts(rule, logits, bias, mask)
    tensors = [None if x is None else torch.from_numpy(x) for x in (bias, mask)]
    other_ids, other_weights = selection.select_experts(rule, torch.from_numpy(logits), *tensors)
    order, other = ids.argsort(axis=1), other_ids.numpy().argsort(axis=1)
    np.testing.assert_array_equal(
        np.take_along_axis(ids, order, 1), np.take_along_axis(other_ids.numpy(), other, 1)
    )
    pairs = np.take_along_axis(weights, order, 1), np.take_along_axis(other_weights.numpy(), other, 1)
    np.testing.assert_allclose(*pairs, rtol=2e-6)


def test_sparsemixer_by_hand() -> None:
    rule = GateRule(experts=4, top_k=2, score="logits", weight="sparsemixer", threshold=0.5)
    ids, weights = select_experts(rule, np.array([[4.0, 3.0, 1.0, -4.0]], np.float32))
    assert ids.tolist() == [[0, 1]]
    # pick 1: 3 is within half of 4, 1 is not; pick 2: (3 - 1) / 3 is further than half, so 3 stands alone
    np.testing.assert_allclose(weights, [[1 / (1 + np.exp(-1.0)), 1.0]], rtol=1e-6)


def test_bent_logits_keep_their_order_but_change_the_weights() -> None:
    logits = np.array([[5.0, 3.0, -2.0]], np.float32)
    plain = select_experts(GateRule(experts=3, top_k=2), logits)
    capped = select_experts(GateRule(experts=3, top_k=2, softcap=1.0), logits)
    scaled = select_experts(GateRule(experts=3, top_k=2, logit_scale=0.5), logits)
    assert plain[0].tolist() == capped[0].tolist() == scaled[0].tolist()
    assert capped[1][0, 0] < scaled[1][0, 0] < plain[1][0, 0]
    assert not GateRule(experts=3, top_k=2, softcap=1.0).shift_invariant
