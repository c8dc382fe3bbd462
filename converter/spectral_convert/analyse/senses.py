"""The scores of the sense benchmark: divergences between routings of one word, and what they separate."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
RESAMPLES = 1000


@dataclass(frozen=True, slots=True)
class Targets:
    """The target tokens of the benchmark, [N] each."""

    lemmas: NDArray[np.int64]
    senses: NDArray[np.int64]
    """Number of the sense, unique over all lemmas."""


@dataclass(frozen=True, slots=True)
class Pairs:
    """Pairs of targets [P]: same word, and whether the sense differs; or of different words."""

    first: NDArray[np.int64]
    second: NDArray[np.int64]
    lemma: NDArray[np.int64]
    differ: NDArray[np.bool_]


def same_word_pairs(targets: Targets) -> Pairs:
    """All pairs within a lemma."""
    first, second = np.triu_indices(len(targets.lemmas), 1)
    keep = targets.lemmas[first] == targets.lemmas[second]
    first, second = first[keep], second[keep]
    return Pairs(first, second, targets.lemmas[first], targets.senses[first] != targets.senses[second])


def other_word_pairs(targets: Targets, seed: int) -> Pairs:
    """For every target one of another lemma, drawn at random."""
    rng = np.random.default_rng(seed)
    first = np.arange(len(targets.lemmas))
    second = rng.permutation(len(first))
    keep = targets.lemmas[first] != targets.lemmas[second]
    first, second = first[keep], second[keep]
    return Pairs(first, second, targets.lemmas[first], np.ones(len(first), bool))


def jensen_shannon(p: Floats, q: Floats) -> Floats:
    """Jensen-Shannon divergence in bits of distributions [..., E] (Lin 1991)."""
    middle = (p + q) / 2
    return np.asarray((_negentropy(p) + _negentropy(q)) / 2 - _negentropy(middle))


def _negentropy(p: Floats) -> Floats:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.where(p > 0, p * np.log2(np.where(p > 0, p, 1.0)), 0.0).sum(axis=-1))


def auc(scores: Floats, positive: NDArray[np.bool_], weights: Floats | None = None) -> float:
    """Area under the ROC curve: the chance that a positive scores above a negative, ties half; weighted."""
    weights = np.ones(len(scores)) if weights is None else weights
    values, place = np.unique(scores, return_inverse=True)
    place = place.ravel()
    up = np.bincount(place, weights * positive, minlength=len(values))
    down = np.bincount(place, weights * ~positive, minlength=len(values))
    below = np.cumsum(down) - down
    total = up.sum() * down.sum()
    return float((up * (below + down / 2)).sum() / total) if total > 0 else float("nan")


def sense_hits(shares: Floats, targets: Targets) -> tuple[Floats, Floats]:
    """Leave-one-sentence-out: is the nearest sense centroid right, and the majority's share; [N] each.

    One sentence of every other sense is left out as well: a centroid of fewer sentences is noisier, and so
    farther from everything, which would count against the right sense. A sense of one sentence scores 0.
    """
    hits, majority = np.zeros(len(shares)), np.zeros(len(shares))
    for lemma in np.unique(targets.lemmas):
        rows = np.flatnonzero(targets.lemmas == lemma)
        groups = [rows[targets.senses[rows] == sense] for sense in np.unique(targets.senses[rows])]
        majority[rows] = max(map(len, groups)) / len(rows)
        for right, group in enumerate(groups):
            for place, row in enumerate(group):
                hits[row] = len(group) > 1 and _nearest(shares, groups, place, row) == right
    return hits, majority


def _nearest(shares: Floats, groups: list[NDArray[np.int64]], place: int, row: int) -> int:
    kept = [np.delete(group, place % len(group)) if len(group) > 1 else group for group in groups]
    centroids = np.stack([shares[group].mean(axis=0) for group in kept])
    return int(jensen_shannon(centroids, shares[row][None]).argmin())


def overlap(ids: NDArray[np.int64], pairs: Pairs) -> Floats:
    """|S and T| / K of the chosen experts ids [N, K] of each pair."""
    same = ids[pairs.first][:, :, None] == ids[pairs.second][:, None, :]
    return np.asarray(same.any(axis=2).mean(axis=1))


@dataclass(frozen=True, slots=True)
class Separation:
    """The scores of one router at one layer."""

    auc: float
    auc_ci95: tuple[float, float]
    sense_accuracy: float
    sense_accuracy_ci95: tuple[float, float]
    majority: float
    separation: float | None
    """(SS - DS) / (SS - DW) of the overlaps: 0 as sentences do, 1 as different words do."""
    separation_ci95: tuple[float, float] | None
    overlap_same_sense: float
    overlap_other_sense: float
    overlap_other_word: float


@dataclass(frozen=True, slots=True)
class Benchmark:
    """Targets, their pairs and the bootstrap multiplicities of lemmas."""

    targets: Targets
    pairs: Pairs
    others: Pairs
    draws: NDArray[np.int64]
    """[S, lemmas]."""

    @classmethod
    def of(cls, targets: Targets, seed: int) -> Benchmark:
        """The pairs and draws of some targets; lemmas are numbered from 0 without holes."""
        number = int(targets.lemmas.max()) + 1
        rng = np.random.default_rng(seed)
        draws = rng.multinomial(number, np.full(number, 1 / number), size=RESAMPLES)
        return cls(targets, same_word_pairs(targets), other_word_pairs(targets, seed), draws)


def separate(bench: Benchmark, shares: Floats, ids: NDArray[np.int64]) -> Separation:
    """All scores of routings with gate probabilities shares [N, E] and chosen experts ids [N, K]."""
    pairs = bench.pairs
    divergence = jensen_shannon(shares[pairs.first], shares[pairs.second])
    hits, majority = sense_hits(shares, bench.targets)
    areas = [auc(divergence, pairs.differ, draw[pairs.lemma].astype(float)) for draw in bench.draws]
    means, ratio = _overlaps(bench, ids)
    accuracy = _lemma_means(bench, hits)
    return Separation(
        auc=auc(divergence, pairs.differ),
        auc_ci95=_interval(np.array(areas)),
        sense_accuracy=float(hits.mean()),
        sense_accuracy_ci95=_interval(accuracy),
        majority=float(majority.mean()),
        separation=float(_ratio(means)) if np.isfinite(_ratio(means)) else None,
        separation_ci95=_interval(ratio) if np.isfinite(ratio).any() else None,
        overlap_same_sense=float(means[0]),
        overlap_other_sense=float(means[1]),
        overlap_other_word=float(means[2]),
    )


def _lemma_means(bench: Benchmark, values: Floats) -> Floats:
    total = np.bincount(bench.targets.lemmas, values, minlength=bench.draws.shape[1])
    count = np.bincount(bench.targets.lemmas, minlength=bench.draws.shape[1])
    return np.asarray((bench.draws @ total) / np.maximum(bench.draws @ count, 1))


def _overlaps(bench: Benchmark, ids: NDArray[np.int64]) -> tuple[Floats, Floats]:
    """Mean overlaps of (same sense, other sense, other word), and the bootstrap ratios [S]."""
    lemmas = bench.draws.shape[1]
    same, others = overlap(ids, bench.pairs), overlap(ids, bench.others)
    sums, counts = [], []
    for values, lemma in (
        (same[~bench.pairs.differ], bench.pairs.lemma[~bench.pairs.differ]),
        (same[bench.pairs.differ], bench.pairs.lemma[bench.pairs.differ]),
        (others, bench.others.lemma),
    ):
        sums.append(np.bincount(lemma, values, minlength=lemmas))
        counts.append(np.bincount(lemma, minlength=lemmas))
    means = np.array([s.sum() / max(c.sum(), 1) for s, c in zip(sums, counts, strict=True)])
    drawn = np.stack(
        [(bench.draws @ s) / np.maximum(bench.draws @ c, 1) for s, c in zip(sums, counts, strict=True)]
    )
    return means, _ratio(drawn)


def _ratio(means: Floats) -> Floats:
    gap = means[0] - means[2]
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.where(np.abs(gap) > 1e-9, (means[0] - means[1]) / gap, np.nan))


def _interval(values: Floats) -> tuple[float, float]:
    low, high = np.nanpercentile(values, [2.5, 97.5])
    return float(low), float(high)
