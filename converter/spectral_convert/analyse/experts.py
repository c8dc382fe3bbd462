"""Experts: what every expert of a model serves, layer by layer; ids of different layers are never merged."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spectral_convert.analyse.clusters import Clusters, cluster_experts, co_activation
from spectral_convert.analyse.conclusions import conclusions
from spectral_convert.analyse.depth import DepthProfile, depth_profile
from spectral_convert.analyse.information import (
    Dependence,
    Null,
    block_counts,
    bootstrap_bits,
    conditional_bits,
    dependence,
    entropy,
    frequent,
    joint_counts,
    lift,
    null_of,
)  # fmt: skip
from spectral_convert.analyse.labelled import LabelledText, label_text, plain_documents, tagged_documents
from spectral_convert.analyse.observe import LayerRouting, observe_routing, refused_routing
from spectral_convert.families import classify_router
from spectral_runtime.attaching.discovery import find_routers
from spectral_runtime.attaching.load import load_base
from spectral_runtime.errors import ConfigError, ModelError
from spectral_runtime.gate import GateRule

BLOCK_TOKENS = 4096
"""A longer document is cut into blocks of this many tokens for the bootstrap."""
MOST_BLOCKS = 256
RESAMPLES = 200
CONDITIONAL_PERMUTATIONS = 10
Labels = NDArray[np.int64]
TOP_TOKENS = 6
LEAST_COUNT = 5
"""A token chosen less often than this says nothing about an expert."""


@dataclass(frozen=True, slots=True)
class Blocks:
    """How the text is cut for bootstraps, and what its labels look like when permuted."""

    of_token: NDArray[np.int64]
    """[T]."""
    tokens: NDArray[np.int64]
    """[B]."""
    draws: NDArray[np.int64]
    """[S, B], bootstrap multiplicities."""
    permuted_domains: tuple[NDArray[np.int64], ...]
    """Domain labels [T] moved between whole documents, or between blocks where documents are few."""
    permuted_classes: tuple[NDArray[np.int64], ...]
    swapped: str
    """`documents` or `blocks`."""


def analyse_experts(
    model: str | Path,
    *,
    text: Sequence[str | Path] = (),
    tagged: str | Path | None = None,
    revision: str | None = None,
    max_tokens: int | None = 200_000,
    sequence_length: int = 1024,
    permutations: int = 50,
    seed: int = 0,
    dtype: str = "float32",
    device: str = "cpu",
) -> dict[str, Any]:
    """Usage, specialisation and clusters of the experts of every layer, with intervals and nulls.

    Args:
        model: hub id or folder of a Mixture-of-Experts checkpoint.
        text: files or folders; every .txt file is one domain named after it.
        tagged: zip in the layout of NLTK's Brown corpus: gold tags, genres as domains; replaces `text`.
        revision: commit or branch on the Hub.
        max_tokens: of all domains together, shared equally.
        sequence_length: tokens per window.
        permutations: of the labels, for the null.
        seed: of permutations and bootstraps.
        dtype: torch dtype of the model.
        device: torch device.

    Raises:
        UserError: no text, an unreadable archive or checkpoint.
    """
    documents = _documents(text, tagged)
    network, tokenizer = load_base(model, revision=revision, dtype=dtype, device=device)
    labelled = label_text(
        tokenizer, documents, length=sequence_length, max_tokens=max_tokens, tagged=tagged is not None
    )
    routings = observe_model(network, labelled)
    blocks = cut_blocks(labelled, permutations, seed)
    record = describe_experts(routings, labelled, blocks, tokenizer, seed)
    protocol = {
        "model": str(model), "revision": revision, "sequence_length": sequence_length,
        "permutations": permutations, "seed": seed, "dtype": dtype,
    }  # fmt: skip
    return {**record, "protocol": {**protocol, **text_protocol(labelled, blocks)}}


def observe_model(model: Any, text: LabelledText) -> list[LayerRouting]:
    """Every router's doings in layer order; one whose rule cannot be told is refused, the others go on.

    Raises:
        ModelError: no router can be used.
    """
    sites = find_routers(model)
    rules: dict[str, GateRule] = {}
    faults: dict[str, ModelError] = {}
    for site in sites:
        try:
            rules[site.path] = classify_router(site)
        except ModelError as error:
            faults[site.path] = error
    if not rules:
        raise next(iter(faults.values()))
    usable = [site for site in sites if site.path in rules]
    seen = observe_routing(model, usable, list(rules.values()), text.windows)
    found = {routing.path: routing for routing in seen}
    return [found.get(site.path) or refused_routing(site.path, str(faults[site.path])) for site in sites]


def _documents(text: Sequence[str | Path], tagged: str | Path | None) -> list[Any]:
    if (tagged is None) == (not text):
        remedy = "--text FILE_OR_FOLDER (may be repeated), or --tagged brown.zip"
        found = "neither" if tagged is None else "both"
        raise ConfigError("analyse", expected="either a text or a tagged corpus", found=found, remedy=remedy)
    return plain_documents(text) if tagged is None else tagged_documents(tagged)


def text_protocol(text: LabelledText, blocks: Blocks) -> dict[str, Any]:
    """What identifies the text and how it was cut."""
    return {
        "tokens": len(text.tokens),
        "documents": len(np.unique(text.documents)),
        "text_sha256": text.sha256,
        "domains": list(text.domain_names),
        "classes": list(text.class_names),
        "class_source": "gold tags" if text.tagged else "closed word lists",
        "blocks": len(blocks.tokens),
        "topic_null": f"labels swapped between {blocks.swapped}",
        "class_null": "labels shuffled between tokens",
    }


def cut_blocks(text: LabelledText, permutations: int, seed: int) -> Blocks:
    """Blocks for the bootstrap and permuted labels for the null."""
    starts = np.concatenate([[0], np.flatnonzero(np.diff(text.documents)) + 1])
    within = np.arange(len(text.tokens)) - np.repeat(starts, np.diff([*starts, len(text.tokens)]))
    keys = text.documents * (2**32) + within // BLOCK_TOKENS
    _, of_token = np.unique(keys, return_inverse=True)
    of_token = of_token.ravel()
    whole = np.unique(text.documents, return_inverse=True)[1].ravel()
    few = whole.max() + 1 < 20
    of_token = of_token % MOST_BLOCKS
    tokens = np.bincount(of_token)
    rng = np.random.default_rng(seed)
    chance = np.full(len(tokens), 1 / len(tokens))
    units = np.unique(keys, return_inverse=True)[1].ravel() if few else whole
    return Blocks(
        of_token=of_token,
        tokens=tokens,
        draws=rng.multinomial(len(tokens), chance, size=RESAMPLES),
        permuted_domains=tuple(_swapped(text.domains, units, rng) for _ in range(permutations)),
        permuted_classes=tuple(rng.permutation(text.classes) for _ in range(permutations)),
        swapped="blocks" if few else "documents",
    )


def _swapped(labels: Labels, units: Labels, rng: np.random.Generator) -> Labels:
    first = np.unique(units, return_index=True)[1]
    return rng.permutation(labels[first])[units]


def describe_experts(
    routings: Sequence[LayerRouting], text: LabelledText, blocks: Blocks, tokenizer: Any, seed: int
) -> dict[str, Any]:
    """The record without its protocol: layers, depth profiles, the ancestor's own statistics, conclusions."""
    usable = [routing for routing in routings if not routing.refused]
    layers = [describe_layer(routing, text, blocks, tokenizer, seed) for routing in usable]
    names = ("class", "topic", "selectivity")
    profiles = {name: _profile(name, usable, text, blocks, layers) for name in names}
    record = {
        "layers": layers,
        "refused": [{"path": r.path, "reason": r.refused} for r in routings if r.refused],
        "depth": {name: dataclasses.asdict(profile) for name, profile in profiles.items()},
        "ancestor": ancestor_statistics(usable, text),
    }
    return {**record, "conclusions": conclusions(record, text.tagged)}


def describe_layer(
    routing: LayerRouting, text: LabelledText, blocks: Blocks, tokenizer: Any, seed: int
) -> dict[str, Any]:
    """Everything about one layer."""
    usage = np.bincount(routing.ids.ravel(), minlength=routing.experts) / routing.ids.size
    pairs = co_activation(routing.ids, blocks.of_token, len(blocks.tokens), routing.experts)
    groups = cluster_experts(pairs, blocks.tokens, seed)
    topic = _dependence(routing, text.domains, len(text.domain_names), blocks, blocks.permuted_domains)
    syntax = _dependence(routing, text.classes, len(text.class_names), blocks, blocks.permuted_classes)
    return {
        "path": routing.path,
        "experts": routing.experts,
        "top_k": routing.top_k,
        "usage": usage.round(6).tolist(),
        "load": load_balance(usage),
        "topic": _as_record(topic),
        "class": _as_record(syntax),
        "topic_given_token": topic_given_token(routing, text, blocks),
        "selectivity": {"margin": float(routing.margins.mean()), "divergence_bits": routing.divergence},
        "clusters": _cluster_record(groups),
        "served": served(routing, text, tokenizer),
    }


def _as_record(value: Dependence | None) -> dict[str, Any] | None:
    return None if value is None else dataclasses.asdict(value)


def _cluster_record(value: Clusters | None) -> dict[str, Any] | None:
    return None if value is None else dataclasses.asdict(value)


def load_balance(usage: NDArray[np.float64]) -> dict[str, Any]:
    """Effective experts (exponential of the entropy) and how uneven the load is."""
    return {
        "effective": float(2.0 ** entropy(usage)),
        "largest_over_mean": float(usage.max() * len(usage)),
        "coefficient_of_variation": float(usage.std() / usage.mean()),
        "never_chosen": int((usage == 0).sum()),
    }


def _dependence(
    routing: LayerRouting, labels: NDArray[np.int64], kinds: int, blocks: Blocks, permuted: Sequence[Any]
) -> Dependence | None:
    """None where there is only one label, so nothing to depend on."""
    if kinds < 2:
        return None
    tables = [joint_counts(routing.ids, other, routing.experts, kinds) for other in permuted]
    null = null_of(tables) if tables else Null(np.zeros(1), np.ones(1))
    return dependence(_blocked(routing, labels, kinds, blocks), null, blocks.draws, len(labels))


def _blocked(routing: LayerRouting, labels: Labels, kinds: int, blocks: Blocks) -> Labels:
    shape = (len(blocks.tokens), routing.experts, kinds)
    return block_counts(routing.ids, labels, blocks.of_token, shape)


def topic_given_token(routing: LayerRouting, text: LabelledText, blocks: Blocks) -> dict[str, Any] | None:
    """I(E; topic | token id): what the topic tells beyond its vocabulary, less the null's mean."""
    kinds = len(text.domain_names)
    if kinds < 2:
        return None
    ranks, keep = frequent(text.tokens, routing.experts * kinds)
    shape = (int(ranks[keep].max()) + 1, routing.experts, kinds)
    ids, given = routing.ids[keep], ranks[keep]
    raw = conditional_bits(ids, text.domains[keep], given, shape)
    moved = blocks.permuted_domains[:CONDITIONAL_PERMUTATIONS]
    null = (
        float(np.mean([conditional_bits(ids, labels[keep], given, shape) for labels in moved]))
        if moved
        else 0.0
    )
    return {"bits": raw - null, "null_bits": null, "tokens_kept": float(keep.mean())}


def served(routing: LayerRouting, text: LabelledText, tokenizer: Any) -> list[dict[str, Any]]:
    """Per expert: share of the load, the topic and class it prefers with their lifts, and its tokens."""
    tokens, inverse = np.unique(text.tokens, return_inverse=True)
    by_token = joint_counts(routing.ids, inverse.ravel(), routing.experts, len(tokens))
    topics = joint_counts(routing.ids, text.domains, routing.experts, len(text.domain_names))
    classes = joint_counts(routing.ids, text.classes, routing.experts, len(text.class_names))
    topic_lift, class_lift = lift(topics), lift(classes)
    total = np.bincount(inverse.ravel())
    rows = []
    for expert in range(routing.experts):
        topic, kind = int(topic_lift[expert].argmax()), int(class_lift[expert].argmax())
        rows.append(
            {
                "expert": expert,
                "usage": float(topics[expert].sum() / routing.ids.size),
                "topic": text.domain_names[topic],
                "topic_lift": float(topic_lift[expert, topic]),
                "class": text.class_names[kind],
                "class_lift": float(class_lift[expert, kind]),
                "tokens": _top_tokens(by_token[expert], total, tokens, tokenizer),
            }
        )
    return rows


def _top_tokens(
    counts: NDArray[np.int64], total: NDArray[np.int64], tokens: NDArray[np.int64], tokenizer: Any
) -> list[str]:
    """The tokens most over-represented among those the expert is chosen for; common ones weigh more."""
    share = counts.sum() / max(total.sum(), 1)
    expected = np.maximum(total * share, 1e-12)
    with np.errstate(divide="ignore", invalid="ignore"):
        strength = np.where(counts >= LEAST_COUNT, counts * np.log(np.maximum(counts, 1) / expected), 0.0)
    best = np.argsort(-strength, kind="stable")[:TOP_TOKENS]
    return [tokenizer.decode([int(tokens[i])]) for i in best if strength[i] > 0]


def _profile(
    name: str, routings: Sequence[LayerRouting], text: LabelledText, blocks: Blocks, layers: Sequence[Any]
) -> DepthProfile:
    if name == "selectivity":
        values = [layer["selectivity"]["margin"] for layer in layers]
        means = [np.bincount(blocks.of_token, r.margins) for r in routings]
        resampled = [(blocks.draws @ mean) / (blocks.draws @ blocks.tokens) for mean in means]
    else:
        if any(layer[name] is None for layer in layers):
            return depth_profile([], np.zeros((1, 0)))
        values = [layer[name]["bits"] for layer in layers]
        labels, names = (
            (text.classes, text.class_names) if name == "class" else (text.domains, text.domain_names)
        )
        resampled = [
            bootstrap_bits(_blocked(routing, labels, len(names), blocks), blocks.draws)
            for routing in routings
        ]
    return depth_profile(values, np.stack(resampled, axis=1) if resampled else np.zeros((1, 0)))


def ancestor_statistics(routings: Sequence[LayerRouting], text: LabelledText) -> dict[str, Any]:
    """The statistics of the study this one corrects, for comparison only."""
    spread = []
    for routing in routings:
        count, total, squares = routing.received
        used = count > 1
        mean = total[used] / count[used]
        deviation = np.sqrt(np.maximum(squares[used] / count[used] - mean**2, 0.0))
        spread.append(float((deviation / np.maximum(np.abs(mean), 1e-12)).mean()))
    return {"selectivity": spread, "pooled_topic_share": _pooled_share(routings, text)}


def _pooled_share(routings: Sequence[LayerRouting], text: LabelledText) -> float | None:
    """Largest topic share of an expert id over uniform, ids merged across layers as the ancestor did."""
    kinds = len(text.domain_names)
    if kinds < 2 or len({routing.experts for routing in routings}) != 1:
        return None
    pooled = sum(joint_counts(r.ids, text.domains, r.experts, kinds) for r in routings) / np.bincount(
        text.domains, minlength=kinds
    )
    return float((pooled / np.maximum(pooled.sum(axis=1, keepdims=True), 1e-12)).max() * kinds)
