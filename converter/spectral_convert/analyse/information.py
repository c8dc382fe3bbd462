"""Mutual information and lift between experts and labels, bias-corrected, with a null."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Counts = NDArray[Any]


def entropy(counts: Counts, axis: int | tuple[int, ...] | None = None) -> NDArray[np.float64]:
    """Plug-in entropy in bits of counts, over `axis`."""
    total = counts.sum(axis=axis, keepdims=True)
    shares = counts / np.maximum(total, 1e-300)
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(shares > 0, -shares * np.log2(np.where(shares > 0, shares, 1.0)), 0.0)
    return np.asarray(terms.sum(axis=axis))


def plug_in(joint: Counts) -> NDArray[np.float64]:
    """I(E; Y) in bits of joint counts [..., E, Y], biased upward."""
    return np.asarray(
        entropy(joint.sum(axis=-1), axis=-1)
        + entropy(joint.sum(axis=-2), axis=-1)
        - entropy(joint, axis=(-2, -1))
    )


def miller_madow(joint: Counts) -> float:
    """I(E; Y) in bits with Miller's bias correction (Miller 1955), from joint counts [E, Y]."""
    total = max(float(joint.sum()), 1.0)
    used = (joint.sum(axis=1) > 0).sum() + (joint.sum(axis=0) > 0).sum() - (joint > 0).sum() - 1
    return float(plug_in(joint) + used / (2.0 * total * np.log(2.0)))


def joint_counts(ids: Counts, labels: Counts, experts: int, kinds: int) -> NDArray[np.int64]:
    """Counts int64 [E, Y] of chosen experts ids [T, K] against labels [T]."""
    keys = ids.astype(np.int64) * kinds + labels[:, None]
    return np.bincount(keys.ravel(), minlength=experts * kinds).reshape(experts, kinds)


def block_counts(
    ids: Counts, labels: Counts, blocks: Counts, shape: tuple[int, int, int]
) -> NDArray[np.int64]:
    """Counts int64 [B, E, Y], one table a block; `shape` is (B, E, Y)."""
    number, experts, kinds = shape
    keys = (blocks[:, None] * experts + ids.astype(np.int64)) * kinds + labels[:, None]
    return np.bincount(keys.ravel(), minlength=number * experts * kinds).reshape(shape)


def lift(joint: Counts) -> NDArray[np.float64]:
    """P(label | expert) / P(label) [E, Y]; 1 where an expert or a label never occurs."""
    total = max(float(joint.sum()), 1.0)
    expected = np.outer(joint.sum(axis=1), joint.sum(axis=0)) / total
    return np.divide(joint, expected, out=np.ones_like(expected), where=expected > 0)


@dataclass(frozen=True, slots=True)
class Dependence:
    """How much a label says about which expert is chosen, in bits a choice."""

    bits: float
    """Miller-Madow corrected."""
    ci95: tuple[float, float]
    """Bootstrap over blocks of text."""
    share: float
    """Of the label's own entropy."""
    null_bits: float
    """Mean under permuted labels, corrected in the same way."""
    p_value: float
    lift_max: float
    lift_p95: float
    null_lift_max: float
    """95th percentile of the largest lift under permuted labels."""
    tokens: int


@dataclass(frozen=True, slots=True)
class Null:
    """The corrected information and the largest lift under permuted labels, [P] each."""

    bits: NDArray[np.float64]
    lifts: NDArray[np.float64]


LEAST_EXPECTED = 5.0
"""Lifts of expert-label pairs expected less often than this are noise and not reported."""


def steady_lifts(joint: Counts) -> NDArray[np.float64]:
    """The lifts of pairs that are expected often enough, flat."""
    expected = np.outer(joint.sum(axis=1), joint.sum(axis=0)) / max(float(joint.sum()), 1.0)
    kept = lift(joint)[expected >= LEAST_EXPECTED]
    return kept if len(kept) else np.ones(1)


def null_of(tables: list[Counts]) -> Null:
    """The null from the joint tables [E, Y] of permuted labels."""
    bits = np.array([miller_madow(table) for table in tables])
    return Null(bits, np.array([steady_lifts(table).max() for table in tables]))


def dependence(blocks: Counts, null: Null, draws: Counts, tokens: int) -> Dependence:
    """All figures of one label at one layer.

    Args:
        blocks: [B, E, Y], counts a block of text.
        null: of the same label.
        draws: [S, B], bootstrap multiplicities of the blocks.
        tokens: T, recorded.
    """
    joint = blocks.sum(axis=0)
    bits, lifts = miller_madow(joint), steady_lifts(joint)
    label = float(entropy(joint.sum(axis=0)))
    low, high = centred_interval(bits, bootstrap_bits(blocks, draws))
    return Dependence(
        bits=bits,
        ci95=(low, high),
        share=bits / label if label > 0 else 0.0,
        null_bits=float(null.bits.mean()),
        p_value=float((1 + (null.bits >= bits).sum()) / (1 + len(null.bits))),
        lift_max=float(lifts.max()),
        lift_p95=float(np.percentile(lifts, 95)),
        null_lift_max=float(np.percentile(null.lifts, 95)),
        tokens=tokens,
    )


def bootstrap_bits(blocks: Counts, draws: Counts) -> NDArray[np.float64]:
    """Plug-in information [S] of every bootstrap resample of the blocks."""
    number, experts, kinds = blocks.shape
    flat = blocks.reshape(number, -1).astype(np.float64)
    return plug_in((draws @ flat).reshape(len(draws), experts, kinds))


def centred_interval(value: float, resampled: Counts) -> tuple[float, float]:
    """95 % bootstrap interval moved onto `value`: resampling biases an information upward."""
    low, high = np.percentile(resampled, [2.5, 97.5]) - resampled.mean()
    return value + float(low), value + float(high)


MOST_CELLS = 4_000_000
"""Token ids x experts x labels counted at once; rarer token ids are left out, and the share kept is told."""


def frequent(tokens: Counts, cells: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Ranks [T] of the token ids by frequency, and which tokens are among the most frequent that fit."""
    _, inverse, counts = np.unique(tokens, return_inverse=True, return_counts=True)
    rank = np.empty(len(counts), np.int64)
    rank[np.argsort(-counts, kind="stable")] = np.arange(len(counts))
    ranks = rank[inverse.ravel()]
    return ranks, ranks < max(1, min(2048, MOST_CELLS // cells))


def conditional_bits(ids: Counts, labels: Counts, given: Counts, shape: tuple[int, int, int]) -> float:
    """Plug-in I(E; Y | token id) in bits; `given` [T] numbers the token ids, `shape` is (V, E, Y)."""
    table = block_counts(ids, labels, given, shape)
    weights = table.sum(axis=(1, 2))
    return float((weights * plug_in(table)).sum() / max(weights.sum(), 1))
