"""Asserts the rules that the shipped polysemy sentences promise in their README."""

from __future__ import annotations

import json
import re
from bisect import bisect_left, bisect_right
from collections import Counter, defaultdict
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from statistics import fmean
from typing import TypedDict

import pytest

DATA = Path(__file__).resolve().parents[2] / "converter" / "spectral_convert" / "data"
FIELDS = ("lemma", "target", "sense", "pos", "gloss", "sentence", "start", "end")
POS = {"noun", "verb", "adj", "adv", "pron"}


class Row(TypedDict):
    lemma: str
    target: str
    sense: str
    pos: str
    gloss: str
    sentence: str
    start: int
    end: int


Senses = dict[str, dict[str, list[Row]]]
Clue = Callable[[Row, Row], float]


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    return [json.loads(line) for line in (DATA / "polysemy.jsonl").read_text("ascii").splitlines()]


@pytest.fixture(scope="module")
def senses(rows: list[Row]) -> Senses:
    grouped: Senses = defaultdict(lambda: defaultdict(list))
    for row in rows:
        grouped[row["lemma"]][row["sense"]].append(row)
    return grouped


def left_words(row: Row) -> int:
    return len(row["sentence"][: row["start"]].split())


def parts_of_speech(by_sense: dict[str, list[Row]]) -> set[str]:
    return {group[0]["pos"] for group in by_sense.values()}


def test_every_row_has_the_same_typed_fields(rows: list[Row]) -> None:
    for row in rows:
        assert tuple(row) == FIELDS
        assert all(isinstance(value, str) and value for value in list(row.values())[:6])
        assert type(row["start"]) is int
        assert type(row["end"]) is int
        assert row["pos"] in POS
        assert re.fullmatch(r"[a-z]+(-[a-z]+)*", row["sense"]), row


def test_file_is_sorted_and_ends_with_a_newline(rows: list[Row]) -> None:
    order = [(row["lemma"], row["sense"]) for row in rows]
    assert order == sorted(order)
    raw = (DATA / "polysemy.jsonl").read_bytes()
    assert raw.endswith(b"}\n")
    assert b"\r" not in raw
    assert b"\n\n" not in raw


def test_at_least_124_lemmas_of_2_to_4_senses_of_4_sentences(senses: Senses) -> None:
    assert len(senses) >= 124
    for lemma, by_sense in senses.items():
        assert 2 <= len(by_sense) <= 4, lemma
        assert all(len(group) == 4 for group in by_sense.values()), lemma


def test_one_surface_form_a_lemma_and_one_gloss_a_sense(senses: Senses) -> None:
    for lemma, by_sense in senses.items():
        assert len({row["target"] for group in by_sense.values() for row in group}) == 1, lemma
        for group in by_sense.values():
            assert len({(row["pos"], row["gloss"]) for row in group}) == 1, lemma
        assert len({group[0]["gloss"] for group in by_sense.values()}) == len(by_sense), lemma


def test_offsets_cut_out_the_lower_case_target_after_a_space(rows: list[Row]) -> None:
    for row in rows:
        sentence, start, end = row["sentence"], row["start"], row["end"]
        assert sentence[start:end] == row["target"] == row["target"].lower(), row
        assert sentence[start - 1] == " ", row
        assert re.match(r"[ .,;:!?]", sentence[end:]), row


def test_target_occurs_once_as_a_word_and_starts_no_other(rows: list[Row]) -> None:
    for row in rows:
        hits = re.findall(rf"\b{re.escape(row['target'])}", row["sentence"], re.IGNORECASE)
        assert len(hits) == 1, row


def test_sentences_have_8_to_25_words_and_target_is_not_among_the_first_three(rows: list[Row]) -> None:
    for row in rows:
        assert 8 <= len(row["sentence"].split()) <= 25, row
        assert left_words(row) >= 3, row


def test_sentences_are_clean_single_sentences(rows: list[Row]) -> None:
    for row in rows:
        assert re.fullmatch(r"[A-Z][A-Za-z0-9 ,;:'-]*[.?!]", row["sentence"]), row
        assert "  " not in row["sentence"], row


def test_no_sentence_left_context_or_opening_repeats(rows: list[Row]) -> None:
    keys = {
        "sentence": Counter(row["sentence"].lower() for row in rows),
        "left context": Counter(row["sentence"][: row["start"]].lower() for row in rows),
        "first four words": Counter(" ".join(row["sentence"].lower().split()[:4]) for row in rows),
    }
    for what, counts in keys.items():
        assert not [text for text, n in counts.items() if n > 1], what


def test_left_context_length_is_balanced_across_the_senses_of_a_lemma(
    senses: Senses,
) -> None:
    for lemma, by_sense in senses.items():
        means = [fmean(map(left_words, group)) for group in by_sense.values()]
        assert max(means) - min(means) <= 2.0, lemma


def test_nouns_verbs_and_mixed_parts_of_speech_are_covered(senses: Senses) -> None:
    kinds = [parts_of_speech(by_sense) for by_sense in senses.values()]
    assert sum(len(kind) > 1 for kind in kinds) >= 40
    assert sum(kind == {"noun"} for kind in kinds) >= 40
    assert sum(kind == {"verb"} for kind in kinds) >= 10


def previous_word(row: Row) -> str:
    return row["sentence"][: row["start"]].split()[-1].lower()


def bag(row: Row) -> set[str]:
    return set(re.findall(r"[a-z]+", row["sentence"][: row["start"]].lower()))


def jaccard(a: set[str], b: set[str]) -> float:
    return 1 - len(a & b) / len(a | b)


CLUES: dict[str, Clue] = {
    "difference in number of words before the target": lambda a, b: abs(left_words(a) - left_words(b)),
    "another word stands directly before the target": lambda a, b: previous_word(a) != previous_word(b),
    "Jaccard distance of the words before the target": lambda a, b: jaccard(bag(a), bag(b)),
}


def clue_auc(senses: Senses, clue: Clue) -> float:
    same: list[float] = []
    other: list[float] = []
    for by_sense in senses.values():
        for a, b in combinations([row for group in by_sense.values() for row in group], 2):
            (same if a["sense"] == b["sense"] else other).append(clue(a, b))
    same.sort()
    return fmean(bisect_left(same, x) + bisect_right(same, x) for x in other) / (2 * len(same))


def guess_credit(row: Row, by_sense: dict[str, list[Row]], clue: Clue) -> float:
    others = {sense: [other for other in group if other is not row] for sense, group in by_sense.items()}
    means = {sense: fmean(clue(row, other) for other in group) for sense, group in others.items()}
    nearest = [sense for sense, mean in means.items() if mean - min(means.values()) < 1e-12]
    return (row["sense"] in nearest) / len(nearest)


def clue_scores(senses: Senses, clue: Clue) -> tuple[float, float]:
    credits = [
        guess_credit(row, by_sense, clue)
        for by_sense in senses.values()
        for group in by_sense.values()
        for row in group
    ]
    return clue_auc(senses, clue), fmean(credits)


@pytest.mark.parametrize("name", CLUES)
def test_surface_clues_stay_as_weak_as_the_readme_says(senses: Senses, name: str) -> None:
    nouns = {lemma: by_sense for lemma, by_sense in senses.items() if parts_of_speech(by_sense) == {"noun"}}
    auc, accuracy = clue_scores(senses, CLUES[name])
    noun_auc, noun_accuracy = clue_scores(nouns, CLUES[name])
    line = f"| {name} | {auc:.3f} | {accuracy:.3f} | {noun_auc:.3f} | {noun_accuracy:.3f} |"
    assert line in (DATA / "README.md").read_text("utf-8")
    assert 0.45 < auc < 0.58
    assert 0.45 < noun_auc < 0.55


def test_readme_states_the_counts_of_the_file(rows: list[Row], senses: Senses) -> None:
    total = sum(map(len, senses.values()))
    text = " ".join((DATA / "README.md").read_text("utf-8").split())
    assert f"{len(senses)} lemmas, {total} senses, {len(rows):,} sentences" in text


def test_readme_example_is_a_row_of_the_file(rows: list[Row]) -> None:
    block = re.search(r"```json\n(.*)\n```", (DATA / "README.md").read_text("utf-8"))
    assert block is not None
    assert json.loads(block[1]) in rows
