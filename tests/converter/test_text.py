"""Documents, windows and the three disjoint splits."""

from __future__ import annotations

from pathlib import Path

import pytest

from spectral_convert.text import calibration_splits, pieces_of, read_documents, whole_text
from spectral_runtime.errors import TextError


class Words:
    """A tokenizer that gives every word a number."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}

    def __call__(self, text: str, **_: object) -> dict[str, list[int]]:
        return {"input_ids": [self.numbers.setdefault(word, len(self.numbers)) for word in text.split()]}


def corpus(folder: Path, documents: int, words: int = 40) -> Path:
    path = folder / "text.txt"
    texts = (" ".join(f"d{d}w{w}" for w in range(words)) for d in range(documents))
    path.write_text("\f".join(texts), encoding="utf-8")
    return path


def test_documents_are_split_at_form_feeds_and_counted_once(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\ftwo\f \n", encoding="utf-8")
    (tmp_path / "b.txt").write_text("two\fthree", encoding="utf-8")
    assert [document.text for document in read_documents(tmp_path)] == ["one", "two", "three"]


def test_a_tail_of_one_token_is_dropped() -> None:
    assert pieces_of(range(9), 4) == [(0, 1, 2, 3), (4, 5, 6, 7)]
    assert pieces_of(range(10), 4)[-1] == (8, 9)


def test_splits_share_no_document_and_repeat_for_a_seed(tmp_path: Path) -> None:
    path, words = corpus(tmp_path, 30), Words()
    splits = calibration_splits(words, path, tokens=800, length=16, seed=3)
    names = dict(words.numbers)
    spelled = {number: word for word, number in names.items()}
    seen = {
        name: {spelled[token].split("w")[0] for window in content.windows for token in window.ids}
        for name, content in splits.items()
    }
    assert not seen["fit"] & seen["certify"]
    assert not seen["fit"] & seen["evaluate"]
    assert not seen["certify"] & seen["evaluate"]
    again = calibration_splits(words, path, tokens=800, length=16, seed=3)
    assert again == splits
    other = calibration_splits(words, path, tokens=800, length=16, seed=4)
    assert other["fit"].split.sha256 != splits["fit"].split.sha256


def test_long_documents_give_windows_from_all_over(tmp_path: Path) -> None:
    path, words = corpus(tmp_path, 12, words=400), Words()
    splits = calibration_splits(words, path, tokens=400, length=16, seed=0)
    starts = [window.ids[0] % 400 for content in splits.values() for window in content.windows]
    assert len(starts) >= 12
    assert max(starts) > 100


def test_too_few_documents_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        TextError, match=r"evaluate split.*expected at least one document, found none — give more"
    ):
        calibration_splits(Words(), corpus(tmp_path, 2), tokens=1000, length=16, seed=0)


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(" \f\n", encoding="utf-8")
    with pytest.raises(TextError, match="expected at least one document, found no text"):
        read_documents(tmp_path / "text.txt")


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TextError, match=r"nothing\.txt: expected"):
        read_documents(tmp_path / "nothing.txt")


def test_whole_text_stops_at_the_limit(tmp_path: Path) -> None:
    content = whole_text(Words(), corpus(tmp_path, 5), 16, max_tokens=50)
    assert 48 <= content.split.tokens <= 50
    assert {window.document for window in content.windows} == {0, 1}
