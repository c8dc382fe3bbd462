"""Every token gets the class of its word and the domain of its document; hostile archives are refused."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from spectral_convert.analyse.labelled import label_text, plain_documents, tagged_documents
from spectral_convert.analyse.words import brown_class, untagged_spans
from spectral_runtime.errors import TextError

DEMO = Path(__file__).parents[2] / "recipes" / "demo" / "checkpoint"


@pytest.fixture(scope="module")
def tokenizer() -> object:
    return AutoTokenizer.from_pretrained(DEMO)


@pytest.mark.parametrize(
    ("tag", "name"),
    [("nn-tl", "noun"), ("np$", "noun"), ("at", "determiner"), ("ppss+bem", "pronoun"), ("vbd", "verb"),
     ("bedz*", "auxiliary"), ("*", "particle"), ("wdt", "determiner"), ("``", "punctuation"),
     (".", "punctuation"), ("--", "punctuation"), ("jjr", "adjective"), ("cs", "conjunction"),
     ("to", "particle"), ("fw-nn", "other")],
)  # fmt: skip
def test_brown_classes(tag: str, name: str) -> None:
    assert brown_class(tag) == name


def test_untagged_classes() -> None:
    text = "The 12 cats don't run, ok + é"
    found = {text[a:b]: c for a, b, c in untagged_spans(text)}
    assert found["The"] == "determiner"
    assert found["12"] == "number"
    assert found["cats"] == found["é"] == "content"
    assert found["don't"] == "auxiliary"
    assert found[","] == "punctuation"
    assert found["+"] == "symbol"


def brown(folder: Path, files: dict[str, str]) -> Path:
    path = folder / "brown.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(f"brown/{name}", content)
    return path


def test_tagged_words_carry_their_class_to_sub_tokens(tmp_path: Path, tokenizer: object) -> None:
    content = (
        "\n\tThe/at extraordinary/jj jury/nn met/vbd ./.\n\n\t``/`` Yes/rb ''/'' ,/, he/pps said/vbd ./.\n"
    )
    path = brown(tmp_path, {"cats.txt": "ca01 news\n", "ca01": content})
    (document,) = tagged_documents(path)
    assert document.text == 'The extraordinary jury met.\n"Yes", he said.\n'
    assert document.domain == "news"
    text = label_text(tokenizer, [document], length=8, tagged=True)
    words = [tokenizer.decode([i]) for i in text.tokens]
    classes = [text.class_names[c] for c in text.classes]
    joined: dict[str, str] = {}
    for word, kind in zip(words, classes, strict=True):
        if word.strip():
            joined[kind] = joined.get(kind, "") + word
    assert joined["adjective"].strip() == "extraordinary"
    assert joined["noun"].strip() == "jury"
    assert "met" in joined["verb"]
    assert "said" in joined["verb"]


def test_domains_share_the_tokens(tmp_path: Path, tokenizer: object) -> None:
    (tmp_path / "a.txt").write_text("one two three four five six seven eight nine ten. " * 20)
    (tmp_path / "b.txt").write_text("alpha beta gamma\fdelta epsilon zeta eta theta iota kappa. " * 3)
    text = label_text(tokenizer, plain_documents([tmp_path]), length=16, max_tokens=60)
    assert text.domain_names == ("a", "b")
    assert (text.domains == 0).sum() == 30
    assert (
        len(text.tokens) == len(text.classes) == len(text.documents) == sum(len(w.ids) for w in text.windows)
    )


@pytest.mark.parametrize("files", [{"ca01": "a/at"}, {"cats.txt": "ca01 news\n"}])
def test_archives_that_are_not_brown(tmp_path: Path, files: dict[str, str]) -> None:
    with pytest.raises(TextError, match=r"zip of `word/tag` files with cats\.txt"):
        tagged_documents(brown(tmp_path, files))


def test_a_file_that_is_no_archive(tmp_path: Path) -> None:
    (tmp_path / "x.zip").write_bytes(b"PK not really")
    with pytest.raises(TextError, match="not a zip file"):
        tagged_documents(tmp_path / "x.zip")
