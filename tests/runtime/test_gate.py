"""`select_experts` against the families' rules written by hand, token by token, in plain Python."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from spectral_runtime.errors import ConfigError
from spectral_runtime.gate import GateRule, select_experts, sigmoid, softmax, top_ids

Row = list[float]
Chosen = tuple[list[int], Row]


def best(values: Row, count: int) -> list[int]:
    return sorted(range(len(values)), key=lambda e: (-values[e], e))[:count]


def soft(values: Row) -> Row:
    powers = [math.exp(v - max(values)) for v in values]
    return [p / sum(powers) for p in powers]


def logistic(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def olmoe(z: Row, bias: Row) -> Chosen:
    """Softmax over all experts, top 3, as they are."""
    scores = soft(z)
    ids = best(scores, 3)
    return ids, [scores[e] for e in ids]


def qwen3(z: Row, bias: Row) -> Chosen:
    """Softmax over all experts, top 3, divided by their sum."""
    ids, weights = olmoe(z, bias)
    return ids, [w / sum(weights) for w in weights]


def mixtral(z: Row, bias: Row) -> Chosen:
    """Top 3 logits, softmax over those."""
    ids = best(z, 3)
    return ids, soft([z[e] for e in ids])


def llama4(z: Row, bias: Row) -> Chosen:
    """Top 3 logits, each through a logistic function."""
    ids = best(z, 3)
    return ids, [logistic(z[e]) for e in ids]


def deepseek_v3(z: Row, bias: Row) -> Chosen:
    """Sigmoid + bias, 2 of 4 groups by the sum of their two best, top 3, normalised, times 2.5."""
    scores = [logistic(v) for v in z]
    choice = [s + b for s, b in zip(scores, bias, strict=True)]
    groups = [choice[4 * g : 4 * g + 4] for g in range(4)]
    kept = best([sum(sorted(group)[-2:]) for group in groups], 2)
    masked = [v if e // 4 in kept else -math.inf for e, v in enumerate(choice)]
    ids = best(masked, 3)
    total = sum(scores[e] for e in ids) + 1e-20
    return ids, [2.5 * scores[e] / total for e in ids]


def deepseek_v2(z: Row, bias: Row) -> Chosen:
    """Softmax, 2 of 4 groups by their maximum, others zero, top 3, as they are, times 16."""
    scores = soft(z)
    kept = best([max(scores[4 * g : 4 * g + 4]) for g in range(4)], 2)
    masked = [v if e // 4 in kept else 0.0 for e, v in enumerate(scores)]
    ids = best(masked, 3)
    return ids, [16 * scores[e] for e in ids]


def floored(z: Row, bias: Row) -> Chosen:
    """Square root of softplus, top 3, divided by a sum that is at least 4."""
    scores = [math.sqrt(math.log1p(math.exp(v))) for v in z]
    ids = best(scores, 3)
    total = max(sum(scores[e] for e in ids), 4.0)
    return ids, [scores[e] / total for e in ids]


FAMILIES: dict[str, tuple[GateRule, Callable[[Row, Row], Chosen]]] = {
    "olmoe": (GateRule(experts=16, top_k=3), olmoe),
    "qwen3": (GateRule(experts=16, top_k=3, normalise=True), qwen3),
    "mixtral": (GateRule(experts=16, top_k=3, score="logits", weight="softmax"), mixtral),
    "llama4": (GateRule(experts=16, top_k=3, score="logits", weight="sigmoid"), llama4),
    "deepseek_v3": (
        GateRule(
            experts=16,
            top_k=3,
            score="sigmoid",
            choice_bias=True,
            groups=4,
            groups_kept=2,
            normalise=True,
            normalise_eps=1e-20,
            scale=2.5,
        ),
        deepseek_v3,
    ),
    "deepseek_v2": (
        GateRule(
            experts=16, top_k=3, groups=4, groups_kept=2, group_score="max", group_fill="zero", scale=16.0
        ),
        deepseek_v2,
    ),
    "floored": (
        GateRule(experts=16, top_k=3, score="sqrtsoftplus", normalise=True, normalise_min=4.0),
        floored,
    ),
}


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("spread", [0.01, 1.0, 10.0])
def test_family_by_hand(rng: np.random.Generator, name: str, spread: float) -> None:
    rule, by_hand = FAMILIES[name]
    logits = (spread * rng.standard_normal((100, 16))).astype(np.float32)
    bias = rng.standard_normal(16).astype(np.float32) if rule.choice_bias else None
    ids, weights = select_experts(rule, logits, bias)
    assert ids.dtype == np.int32
    assert weights.dtype == np.float32
    row_bias = [0.0] * 16 if bias is None else bias.tolist()
    for token, row in enumerate(logits.tolist()):
        expected_ids, expected_weights = by_hand(row, row_bias)
        assert ids[token].tolist() == expected_ids
        np.testing.assert_allclose(weights[token], expected_weights, rtol=2e-5, atol=1e-7)


def test_zero_filled_groups_can_still_be_chosen() -> None:
    """DeepSeek V2 masks with zero: with negative scores in the kept group, masked experts win."""
    rule = GateRule(
        experts=4, top_k=2, score="logits", groups=2, groups_kept=1, group_score="max", group_fill="zero"
    )
    ids, _ = select_experts(rule, np.array([[1.0, -5.0, 0.5, 0.2]], np.float32))
    assert ids.tolist() == [[0, 2]]


def test_infinitely_masked_groups_cannot() -> None:
    rule = GateRule(experts=4, top_k=2, score="logits", groups=2, groups_kept=1, group_score="max")
    ids, _ = select_experts(rule, np.array([[1.0, -5.0, 0.5, 0.2]], np.float32))
    assert ids.tolist() == [[0, 1]]


def test_bias_chooses_but_does_not_weigh() -> None:
    rule = GateRule(experts=3, top_k=1, score="sigmoid", choice_bias=True)
    ids, weights = select_experts(rule, np.zeros((1, 3), np.float32), np.array([0, 0, 9], np.float32))
    assert ids.tolist() == [[2]]
    assert weights.tolist() == [[0.5]]


def test_ties_go_to_the_smaller_id() -> None:
    ids, weights = select_experts(GateRule(experts=6, top_k=4), np.array([[1, 2, 2, 1, 2, 1]], np.float32))
    assert ids.tolist() == [[1, 2, 4, 0]]
    assert weights[0, 0] == weights[0, 1] == weights[0, 2]


def test_group_ties_go_to_the_smaller_group() -> None:
    rule = GateRule(experts=6, top_k=2, groups=3, groups_kept=1, score="logits")
    assert select_experts(rule, np.ones((1, 6), np.float32))[0].tolist() == [[0, 1]]


def test_nan_ranks_last_and_is_returned_in_the_weight() -> None:
    values = np.array([[np.nan, 1.0, -np.inf, 2.0]], np.float32)
    assert top_ids(values, 4).tolist() == [[3, 1, 0, 2]]
    ids, weights = select_experts(GateRule(experts=4, top_k=2, score="logits"), values)
    assert ids.tolist() == [[3, 1]]
    assert weights.tolist() == [[2.0, 1.0]]


def test_mask_limits_the_choice_but_not_the_denominator(rng: np.random.Generator) -> None:
    logits = rng.standard_normal((50, 16)).astype(np.float32)
    mask = np.zeros((50, 16), dtype=bool)
    mask[:, 4:12] = True
    ids, weights = select_experts(GateRule(experts=16, top_k=3), logits, mask=mask)
    assert ((ids >= 4) & (ids < 12)).all()
    np.testing.assert_array_equal(weights, np.take_along_axis(softmax(logits), ids.astype(np.int64), axis=-1))


def test_full_mask_changes_nothing(rng: np.random.Generator) -> None:
    logits = rng.standard_normal((50, 16)).astype(np.float32)
    for rule, _ in FAMILIES.values():
        bias = np.zeros(16, np.float32) if rule.choice_bias else None
        plain = select_experts(rule, logits, bias)
        masked = select_experts(rule, logits, bias, np.ones((50, 16), dtype=bool))
        np.testing.assert_array_equal(plain[0], masked[0])
        np.testing.assert_array_equal(plain[1], masked[1])


def test_large_logits_do_not_overflow() -> None:
    values = np.array([[-1e4, 0.0, 1e4]], np.float32)
    np.testing.assert_array_equal(sigmoid(values), [[0.0, 0.5, 1.0]])
    np.testing.assert_array_equal(softmax(values), [[0.0, 0.0, 1.0]])


def test_no_tokens() -> None:
    ids, weights = select_experts(GateRule(experts=4, top_k=2), np.empty((0, 4), np.float32))
    assert ids.shape == weights.shape == (0, 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"experts": 4, "top_k": 0}, r"rule\.top_k: expected 1 to 4 \(the experts\), found 0"),
        ({"experts": 4, "top_k": 5}, r"rule\.top_k: expected 1 to 4"),
        ({"experts": 4, "top_k": 1, "groups": 3}, r"rule\.groups: .*found 3 groups, 1 kept, 4 experts"),
        (
            {"experts": 4, "top_k": 1, "groups": 2, "groups_kept": 3},
            r"rule\.groups: expected groups that divide",
        ),
        ({"experts": 4, "top_k": 1, "groups": 0}, r"rule\.groups: expected groups that divide"),
    ],
)
def test_impossible_rules(options: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        GateRule(**options)  # type: ignore[arg-type]


def test_shift_invariance_is_what_it_says(rng: np.random.Generator) -> None:
    logits = rng.standard_normal((20, 16)).astype(np.float32)
    for name, (rule, _) in FAMILIES.items():
        bias = np.zeros(16, np.float32) if rule.choice_bias else None
        ids, weights = select_experts(rule, logits, bias)
        other_ids, other_weights = select_experts(rule, logits + np.float32(2.0), bias)
        same = np.array_equal(ids, other_ids) and np.allclose(weights, other_weights, rtol=1e-4)
        assert rule.shift_invariant <= same, name
