"""Which experts fire together: average-linkage clusters of the co-activation, and whether they come back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spectral_runtime.errors import ConfigError

Floats = NDArray[np.float64]
HALVES = 20
"""Random halves of the text that stability is judged by."""


@dataclass(frozen=True, slots=True)
class Clusters:
    """Groups of experts of one layer that are chosen for the same tokens."""

    members: tuple[tuple[int, ...], ...]
    """Expert ids, largest group first; experts that were never chosen are in none."""
    silhouette: float
    """Of the chosen number of groups; near 0 means there are no groups to speak of."""
    stability: float
    """Mean adjusted Rand index between clusterings of random halves of the text; 1 the same, 0 chance."""
    largest_phi: float
    """Highest correlation of two experts' firing."""


def co_activation(ids: NDArray[Any], blocks: NDArray[Any], number: int, experts: int) -> NDArray[np.int64]:
    """Counts int64 [B, E, E] of tokens that choose both experts, one table a block; the diagonal is usage."""
    table = np.zeros((number, experts, experts), np.int64)
    flat = table.reshape(-1)
    base = blocks.astype(np.int64) * experts * experts
    wide = ids.astype(np.int64)
    for column in range(ids.shape[1]):
        for other in range(ids.shape[1]):
            keys = base + wide[:, column] * experts + wide[:, other]
            flat += np.bincount(keys, minlength=len(flat))
    return table


def correlations(pairs: NDArray[Any], tokens: int) -> Floats:
    """The phi coefficient [E, E] of two experts' firing over `tokens` tokens."""
    share = np.diag(pairs) / tokens
    spread = np.sqrt(np.maximum(share * (1 - share), 1e-300))
    phi = (pairs / tokens - np.outer(share, share)) / np.outer(spread, spread)
    np.fill_diagonal(phi, 1.0)
    return np.asarray(np.clip(phi, -1.0, 1.0))


def cluster_experts(tables: NDArray[Any], tokens: NDArray[Any], seed: int) -> Clusters | None:
    """Clusters of one layer; None when too few experts fire to speak of groups.

    Args:
        tables: [B, E, E], from `co_activation`.
        tokens: [B], tokens a block.
        seed: of the random halves.
    """
    alive = np.flatnonzero(np.diagonal(tables.sum(axis=0)) > 0)
    if len(alive) < 4:
        return None
    tables = tables[:, alive][:, :, alive]
    phi = correlations(tables.sum(axis=0), int(tokens.sum()))
    labels, score = best_partition(1.0 - phi)
    groups = [tuple(int(e) for e in alive[labels == name]) for name in np.unique(labels)]
    off_diagonal = phi[~np.eye(len(phi), dtype=bool)]
    return Clusters(
        members=tuple(sorted(groups, key=lambda group: (-len(group), group))),
        silhouette=score,
        stability=_stability(tables, tokens, int(labels.max()), seed),
        largest_phi=float(off_diagonal.max()),
    )


def best_partition(distance: Floats) -> tuple[NDArray[np.int64], float]:
    """Average-linkage labels [E] whose number of groups has the best mean silhouette (Rousseeuw 1987)."""
    tree = _tree(distance)
    candidates = [_cut(tree, count) for count in range(2, len(distance) // 2 + 1)]
    scores = [silhouette(distance, labels) for labels in candidates]
    best = int(np.argmax(scores))
    return candidates[best], float(scores[best])


def _tree(distance: Floats) -> Floats:
    try:
        from scipy.cluster.hierarchy import linkage
        from scipy.spatial.distance import squareform
    except ImportError as error:
        raise ConfigError(
            "analyse", expected="scipy", found=str(error), remedy="pip install scipy"
        ) from error
    matrix = (distance + distance.T) / 2
    np.fill_diagonal(matrix, 0.0)
    return np.asarray(linkage(squareform(matrix, checks=False), method="average"))


def _cut(tree: Floats, count: int) -> NDArray[np.int64]:
    from scipy.cluster.hierarchy import fcluster

    return np.asarray(fcluster(tree, count, criterion="maxclust"), np.int64)


def silhouette(distance: Floats, labels: NDArray[np.int64]) -> float:
    """Mean silhouette width; members of groups of one count 0."""
    names = np.unique(labels)
    if len(names) < 2:
        return -1.0
    member = labels[:, None] == names[None]
    size = member.sum(axis=0)
    total = distance @ member
    row = np.arange(len(labels))
    own = member.argmax(axis=1)
    inside = total[row, own] / np.maximum(size[own] - 1, 1)
    outside = np.where(member, np.inf, total / size).min(axis=1)
    widths = (outside - inside) / np.maximum(np.maximum(outside, inside), 1e-12)
    return float(np.where(size[own] > 1, widths, 0.0).mean())


def _stability(tables: NDArray[Any], tokens: NDArray[Any], count: int, seed: int) -> float:
    if len(tables) < 2:
        return 0.0
    rng = np.random.default_rng(seed)
    values = []
    for _ in range(HALVES):
        order = rng.permutation(len(tables))
        halves = order[: len(order) // 2], order[len(order) // 2 :]
        labels = [
            _cut(_tree(1.0 - correlations(tables[half].sum(axis=0), int(tokens[half].sum()))), count)
            for half in halves
        ]
        values.append(adjusted_rand(*labels))
    return float(np.mean(values))


def adjusted_rand(first: NDArray[np.int64], second: NDArray[np.int64]) -> float:
    """Adjusted Rand index of two partitions of the same things (Hubert and Arabie 1985)."""
    table = np.zeros((int(first.max()) + 1, int(second.max()) + 1))
    np.add.at(table, (first, second), 1)

    def pairs(counts: NDArray[Any]) -> float:
        return float((counts * (counts - 1) / 2).sum())

    together, rows, columns = pairs(table), pairs(table.sum(axis=1)), pairs(table.sum(axis=0))
    whole = len(first) * (len(first) - 1) / 2
    expected = rows * columns / whole
    most = (rows + columns) / 2
    return 1.0 if most == expected else (together - expected) / (most - expected)
