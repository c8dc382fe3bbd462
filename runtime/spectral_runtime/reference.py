"""The whole router in numpy, step for step: the oracle of every back-end, and the one that always works."""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spectral_runtime.gate import GateRule, anchor_ranks, expert_scores, top_ids
from spectral_runtime.geometry import Bvh, Floats, Geometry, Ints, directions

# A node's bound and an expert's score each suffer at most about R + L + S + 8 float32 roundings relative to
# the magnitude of their terms; see the slack in plugins/cpu/kernels/search.inl.
_ROUNDING = 2.0**-24
_CHOICE_SLACK = np.float32(1.0 + 2.0e-6)


def unavailable() -> None:
    """The reason why this back-end cannot run: there is none."""
    return


def project(geometry: Geometry, hidden: Floats) -> Floats:
    """Points and colour float32 [T, R] of hidden states [T, D]."""
    return np.asarray((hidden - geometry.mean) @ geometry.projection.T, dtype=np.float32)


def point_scores(geometry: Geometry, points: Floats) -> Floats:
    """Approximate logits float32 [T, E] of projected points [T, R], without the common mode."""
    return np.asarray(points @ directions(geometry).T + geometry.beta, dtype=np.float32)


def scores(geometry: Geometry, hidden: Floats) -> Floats:
    """Approximate logits float32 [T, E] of hidden states [T, D], the common mode included."""
    out = point_scores(geometry, project(geometry, hidden))
    if geometry.common is None:
        return out
    return np.asarray(out + ((hidden - geometry.mean) @ geometry.common)[:, None], dtype=np.float32)


def choice_scores(rule: GateRule, logits: Floats, choice_bias: Floats | None) -> Floats:
    """What a gate ranks experts by, float32 [T, E]: its score of the logits, plus its bias.

    A softmax without bias ranks like its logits, so these are returned as they are.
    """
    monotone_softmax = rule.score == "softmax" and choice_bias is None
    chosen = logits if monotone_softmax else expert_scores(rule, logits)
    return chosen if choice_bias is None else np.asarray(chosen + choice_bias, dtype=np.float32)


def separable(rule: GateRule, geometry: Geometry, choice_bias: Floats | None) -> bool:
    """Whether a search may rank each expert alone, without the common mode of the token."""
    if choice_bias is not None and (rule.softcap or rule.logit_scale != 1.0):
        return False  # the back-ends add the bias to scores of unbent logits
    plain = rule.score == "logits" or (rule.score == "softmax" and choice_bias is None)
    return plain or (rule.score != "softmax" and geometry.common is None)


def candidates(
    geometry: Geometry, rule: GateRule, hidden: Floats, count: int, choice_bias: Floats | None = None
) -> tuple[Ints, Floats]:
    """The best `count` experts by a full sort.

    Args:
        geometry: the router.
        rule: the family's gate rule.
        hidden: float32 [T, D].
        count: C, 1 to E.
        choice_bias: float32 [E], for rules that have one.

    Returns:
        ids int32 [T, C] by descending choice score, ties by smaller id, NaN last; float32 [T, C] scores.
    """
    if separable(rule, geometry, choice_bias):
        logits = point_scores(geometry, project(geometry, hidden))
    else:
        logits = scores(geometry, hidden)
    return best(choice_scores(rule, logits, choice_bias), count)


def within_margin(rule: GateRule, ranked: Floats, margin: float) -> NDArray[np.bool_]:
    """Bool [T, C]: which of the candidates, by descending score [T, C], an adaptive set keeps.

    The best K always, and all within `margin` below the mean of the scores around the K-th.
    """
    first, last = anchor_ranks(rule, ranked.shape[-1])
    keep = ranked >= ranked[..., first:last].mean(axis=-1, keepdims=True) - np.float32(margin)
    keep[..., : rule.top_k] = True
    return np.asarray(keep)


def best(choice: Floats, count: int) -> tuple[Ints, Floats]:
    """Ids int32 [T, C] and values float32 [T, C] of the `count` largest of each row; NaN after everything."""
    missing = np.isnan(choice)
    ids = _nan_last(choice, missing)[..., :count] if missing.any() else top_ids(choice, count)
    return ids, np.take_along_axis(choice, ids.astype(np.int64), axis=-1)


def _nan_last(choice: Floats, missing: NDArray[np.bool_]) -> Ints:
    values = np.where(missing, -np.inf, choice)
    ids = np.broadcast_to(np.arange(choice.shape[-1]), choice.shape)
    return np.lexsort((ids, -values, missing), axis=-1).astype(np.int32)


@dataclass(frozen=True, slots=True)
class Found:
    """What one best-first search found, and what it cost."""

    ids: Ints
    """[C]."""
    scores: Floats
    """[C]."""
    nodes: int
    """Inner nodes opened."""
    leaves: int
    """Leaves opened."""


def search(
    geometry: Geometry,
    bvh: Bvh,
    rule: GateRule,
    point: Floats,
    *,
    count: int,
    choice_bias: Floats | None = None,
) -> Found:
    """Best-first search for one projected point float32 [R].

    Opens the node with the best bound until this bound is below the C-th best choice score.
    """
    queue: list[tuple[float, int]] = [(-np.inf, 0)]
    held: list[tuple[float, int]] = []
    nodes = leaves = 0
    while queue:
        negated, node = heapq.heappop(queue)
        if len(held) == count and -negated < held[-1][0]:
            break
        if bvh.count[node] > 0:
            leaves += 1
            held = _merge(held, _leaf_entries(geometry, rule, point, _members(bvh, node), choice_bias), count)
            continue
        nodes += 1
        for child in (int(bvh.first[node]), int(bvh.first[node]) + 1):
            bound = node_bound(geometry, bvh, rule, point, child)
            heapq.heappush(queue, (-np.inf if np.isnan(bound) else -bound, child))
    ids = np.array([expert for _, expert in held], dtype=np.int32)
    return Found(ids, np.array([score for score, _ in held], dtype=np.float32), nodes, leaves)


def _members(bvh: Bvh, node: int) -> Ints:
    return bvh.experts[bvh.first[node] : bvh.first[node] + bvh.count[node]]


def _leaf_entries(
    geometry: Geometry, rule: GateRule, point: Floats, experts: Ints, choice_bias: Floats | None
) -> list[tuple[float, int]]:
    logits = point_scores(geometry, point[None])[:, experts]
    bias = None if choice_bias is None else choice_bias[experts]
    values = choice_scores(rule, logits, bias)[0]
    return [(float(value), int(expert)) for value, expert in zip(values, experts, strict=True)]


def _merge(
    held: list[tuple[float, int]], new: list[tuple[float, int]], count: int
) -> list[tuple[float, int]]:
    return sorted(held + new, key=lambda entry: (np.isnan(entry[0]), -np.nan_to_num(entry[0]), entry[1]))[
        :count
    ]


def node_bound(geometry: Geometry, bvh: Bvh, rule: GateRule, point: Floats, node: int) -> float:
    """An upper bound of the choice scores below a node: never lower than any of them, in float32."""
    lower, upper = bvh.lower[node], bvh.upper[node]
    split = 3 * geometry.levels
    p, lo, hi = (x[:split].reshape(-1, 3) for x in (point, lower, upper))
    interval = np.maximum(2 * lo * p, 2 * hi * p).sum(axis=1)
    interval[:1] += bvh.beta[node]
    gap = np.maximum(np.maximum(lo - p, p - hi), 0)
    power = (p * p).sum(axis=1) + bvh.power[node] - (gap * gap).sum(axis=1)
    colour = np.maximum(lower[split:] * point[split:], upper[split:] * point[split:]).sum()
    bound = np.fmin(interval, power).sum() + colour + _slack(geometry, bvh, point)
    has_bias = rule.choice_bias
    chosen = choice_scores(rule, np.array([[bound]], dtype=np.float32), None)[0, 0]
    if rule.score in ("sigmoid", "sqrtsoftplus"):
        chosen = chosen * _CHOICE_SLACK
    return float(chosen + bvh.choice_bias[node] if has_bias else chosen)


def _slack(geometry: Geometry, bvh: Bvh, point: Floats) -> float:
    reach = np.maximum(np.abs(bvh.lower[0]), np.abs(bvh.upper[0])).astype(np.float64)
    split = 3 * geometry.levels
    squares = point[:split].astype(np.float64) ** 2 + reach[:split] ** 2
    terms = np.abs(geometry.beta).max() + 2 * np.abs(point.astype(np.float64)) @ reach + 8 * squares.sum()
    return float(4 * (geometry.rank + 8) * _ROUNDING * terms + 2.0**-120)


def build_tree(geometry: Geometry, choice_bias: Floats | None, leaf_size: int) -> Bvh:
    """A median-split BVH: the builder of machines without the native core, and the tests' second opinion."""
    coordinates = np.concatenate([*geometry.centres, geometry.colour], axis=1)
    first, count, experts = _median_splits(coordinates, leaf_size)
    power = (geometry.centres**2).sum(axis=-1).T
    power[:, :1] += geometry.beta[:, None]
    bias = np.zeros_like(geometry.beta) if choice_bias is None else choice_bias
    upper = np.concatenate([coordinates, power, geometry.beta[:, None], bias[:, None]], axis=1)
    highs = _node_maxima(upper, first, count, experts)
    rank, last = geometry.rank, geometry.rank + geometry.levels
    return Bvh(
        lower=-_node_maxima(-coordinates, first, count, experts),
        upper=np.ascontiguousarray(highs[:, :rank]),
        power=np.ascontiguousarray(highs[:, rank:last]),
        beta=np.ascontiguousarray(highs[:, last]),
        choice_bias=np.ascontiguousarray(highs[:, last + 1]),
        first=first,
        count=count,
        experts=experts,
    )


def _median_splits(coordinates: Floats, leaf_size: int) -> tuple[Ints, Ints, Ints]:
    experts = np.arange(len(coordinates), dtype=np.int32)
    first, count = [0], [0]
    stack = [(0, 0, len(coordinates))]
    while stack:
        node, begin, end = stack.pop()
        if end - begin <= leaf_size:
            first[node], count[node] = begin, end - begin
            continue
        part = coordinates[experts[begin:end]]
        axis = int(np.argmax(part.max(axis=0) - part.min(axis=0)))
        experts[begin:end] = experts[begin:end][np.argsort(part[:, axis], kind="stable")]
        middle = begin + (end - begin) // 2
        first[node] = len(first)
        stack += [(len(first) + 1, middle, end), (len(first), begin, middle)]
        first += [0, 0]
        count += [0, 0]
    return np.array(first, dtype=np.int32), np.array(count, dtype=np.int32), experts


def _node_maxima(rows: Floats, first: Ints, count: Ints, experts: Ints) -> Floats:
    """Column maxima [N, W] of the rows [E, W] below every node; children come after their parent."""
    out = np.empty((len(first), rows.shape[1]), dtype=np.float32)
    for node in range(len(first) - 1, -1, -1):
        below = rows[experts[first[node] : first[node] + count[node]]]
        out[node] = (below if count[node] else out[first[node] : first[node] + 2]).max(axis=0)
    return out


class Engine:
    """The reference as a back-end of `Router`."""

    def __init__(
        self,
        geometry: Geometry,
        rule: GateRule,
        bvh: Bvh | None,
        *,
        choice_bias: Floats | None,
        threads: int | None,
    ) -> None:
        del bvh, threads  # a full sort in one thread
        self.geometry, self.rule, self.choice_bias = geometry, rule, choice_bias

    def scores(self, hidden: Floats) -> Floats:
        """Approximate logits float32 [T, E] of hidden states float32 [T, D]."""
        return scores(self.geometry, hidden)

    def candidates(self, hidden: Floats, count: int) -> tuple[Ints, Floats]:
        """Ids int32 [T, C] and choice scores float32 [T, C] of hidden states float32 [T, D]."""
        return candidates(self.geometry, self.rule, hidden, count, self.choice_bias)
