"""The sense benchmark: scores by hand, planted routings, and the demo checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer

from spectral_convert.analyse.polysemy import DATA, analyse_polysemy, locate_targets, read_sentences
from spectral_convert.analyse.senses import (
    Benchmark,
    Targets,
    auc,
    jensen_shannon,
    overlap,
    same_word_pairs,
    sense_hits,
    separate,
)
from spectral_runtime.errors import TextError

DEMO = Path(__file__).parents[2] / "recipes" / "demo" / "checkpoint"


def targets(lemmas: int, senses: int = 2, sentences: int = 4) -> Targets:
    lemma = np.repeat(np.arange(lemmas), senses * sentences)
    return Targets(lemma, np.repeat(np.arange(lemmas * senses), sentences))


def test_jensen_shannon_of_disjoint_and_of_same() -> None:
    p, q = np.array([1.0, 0.0]), np.array([0.0, 1.0])
    assert jensen_shannon(p, q) == pytest.approx(1.0)
    assert jensen_shannon(p, p) == pytest.approx(0.0)


def test_auc_against_all_pairs(rng: np.random.Generator) -> None:
    scores, positive = rng.integers(0, 6, 40).astype(float), rng.random(40) < 0.4
    gaps = scores[positive][:, None] - scores[~positive][None]
    assert auc(scores, positive) == pytest.approx(((gaps > 0) + 0.5 * (gaps == 0)).mean())
    twice = rng.integers(0, 3, 40)
    repeated = np.repeat(scores, twice), np.repeat(positive, twice)
    assert auc(scores, positive, twice.astype(float)) == pytest.approx(auc(*repeated))


def test_pairs_stay_within_the_word() -> None:
    pairs = same_word_pairs(targets(3))
    assert len(pairs.first) == 3 * 28
    assert pairs.differ.sum() == 3 * 16


def test_a_router_that_knows_senses_scores_one_and_one_that_does_not_half(rng: np.random.Generator) -> None:
    words = targets(30)
    bench = Benchmark.of(words, 0)
    knows = np.full((240, 64), 1e-3)
    knows[np.arange(240), words.senses] = 1.0
    knows /= knows.sum(axis=1, keepdims=True)
    chosen = np.stack([words.senses, words.lemmas + 100], axis=1)
    good = separate(bench, knows, chosen)
    assert good.auc == pytest.approx(1.0)
    assert good.sense_accuracy == 1.0
    assert good.majority == pytest.approx(0.5)
    assert good.separation == pytest.approx(0.5)
    noise = rng.dirichlet(np.ones(64), 240)
    poor = separate(bench, noise, rng.integers(0, 64, (240, 2)))
    assert poor.auc_ci95[0] < 0.5 < poor.auc_ci95[1]
    assert abs(poor.sense_accuracy - 0.5) < 0.12


def test_leaving_a_sentence_out_really_leaves_it_out() -> None:
    """Every sentence is its own island: with itself in the centroid accuracy would be 1."""
    hits, majority = sense_hits(np.eye(8), targets(1))
    assert hits.sum() == 0 or hits.mean() <= 0.5
    assert (majority == 0.5).all()


def test_overlap_counts_sets() -> None:
    pairs = same_word_pairs(Targets(np.zeros(2, int), np.arange(2)))
    assert overlap(np.array([[1, 2, 3, 4], [4, 3, 9, 8]]), pairs).tolist() == [0.5]


def test_targets_are_found_by_characters() -> None:
    tokenizer = AutoTokenizer.from_pretrained(DEMO)
    sentences = read_sentences(DATA)
    located = locate_targets(tokenizer, sentences)
    assert located.skipped < 0.02 * len(sentences)
    for window, row in zip(located.windows[::97], located.rows[::97], strict=True):
        assert tokenizer.decode(window.ids).rstrip().endswith(row["sentence"][: row["end"]][-6:])


def test_a_target_that_ends_inside_a_token_is_skipped_and_counted() -> None:
    tokenizer = AutoTokenizer.from_pretrained(DEMO)
    rows = read_sentences(DATA)[:8] + read_sentences(DATA)[-8:]
    broken = dict(rows[0])
    broken["end"] -= 1
    assert locate_targets(tokenizer, [broken, *rows]).skipped == 1


@pytest.mark.parametrize(
    "line",
    [
        "not json",
        "{}",
        '{"lemma":"a","target":"b","sense":"c","pos":"noun","sentence":"x y","start":0,"end":1}',
    ],
)
def test_unreadable_data(tmp_path: Path, line: str) -> None:
    file = tmp_path / "x.jsonl"
    file.write_text(line)
    with pytest.raises(TextError, match="expected JSONL rows with lemma"):
        read_sentences(file)


def test_demo_model_carries_some_sense(tmp_path: Path) -> None:
    rows = read_sentences(DATA)[:400]
    file = tmp_path / "some.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in rows))
    record = analyse_polysemy(DEMO, data=file)
    json.dumps(record, allow_nan=False)
    assert [row["router"] for row in record["layers"]] == ["gate"] * 4
    assert max(row["auc_ci95"][0] for row in record["layers"]) > 0.5
    assert record["nouns"]
