"""What every expert serves, for its card: from an expert analysis, or counted over the room's own text."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

TOP_TOKENS = 6
LEAST_COUNT = 3


def analysed_cards(experts: dict[str, Any], path: str) -> list[dict[str, Any]]:
    """The cards of a layer from the evidence of `analyse experts`; empty when it has none."""
    layer = next((x for x in experts.get("layers", []) if x.get("path") == path), None)
    if layer is None:
        return []
    keys = ("usage", "topic", "topic_lift", "class", "class_lift", "tokens")
    return [{key: row.get(key) for key in keys} for row in layer["served"]]


def counted_cards(
    ids: NDArray[np.int64],
    tokens: NDArray[np.int64],
    domains: NDArray[np.int64],
    names: list[str],
    words: Any,
) -> list[dict[str, Any]]:
    """The cards of a layer from chosen experts ids [T, K] of tokens [T]; `words` turns a token id into text."""
    experts = int(ids.max()) + 1
    kinds, inverse = np.unique(tokens, return_inverse=True)
    by_token = _table(ids, inverse.ravel(), experts, len(kinds))
    by_domain = _table(ids, domains, experts, len(names))
    total, share = by_token.sum(axis=0), by_domain.sum(axis=0) / max(by_domain.sum(), 1)
    cards = []
    for expert in range(experts):
        own = by_domain[expert].sum()
        lifts = by_domain[expert] / np.maximum(own * share, 1e-12)
        best = int(lifts.argmax())
        cards.append(
            {
                "usage": float(own / ids.size),
                "topic": names[best] if own and len(names) > 1 else None,
                "topic_lift": float(lifts[best]),
                "tokens": [words(int(kinds[i])) for i in _preferred(by_token[expert], total)],
            }
        )
    return cards


def _table(ids: NDArray[np.int64], labels: NDArray[np.int64], experts: int, kinds: int) -> NDArray[np.int64]:
    keys = ids * kinds + labels[:, None]
    return np.bincount(keys.ravel(), minlength=experts * kinds).reshape(experts, kinds)


def _preferred(counts: NDArray[np.int64], total: NDArray[np.int64]) -> list[int]:
    expected = np.maximum(total * counts.sum() / max(total.sum(), 1), 1e-12)
    strength = np.where(counts >= LEAST_COUNT, counts * np.log(np.maximum(counts, 1) / expected), 0.0)
    return [int(i) for i in np.argsort(-strength, kind="stable")[:TOP_TOKENS] if strength[i] > 0]
