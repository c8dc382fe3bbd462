"""Calibration text from everywhere: folders, JSON lines, chats, Hub datasets; and experts that it hardly reaches."""

from __future__ import annotations

import json
import logging
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pico_models import pico_model, write_tokenizer

from spectral_convert.capture import warn_rare
from spectral_convert.captured import LayerCapture, Moments
from spectral_convert.sources import read_documents
from spectral_convert.text import calibration_splits
from spectral_runtime.attaching import find_routers
from spectral_runtime.errors import TextError

CHAT = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "who is there"}]


def write_lines(file: Path, *rows: Any) -> Path:
    file.write_text("\n".join(json.dumps(row) for row in rows) + "\n", encoding="utf-8")
    return file


def texts(source: str | Path, **options: Any) -> list[str]:
    return [document.text for document in read_documents(source, **options)]


def test_folder_of_text_and_lines(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\ftwo", encoding="utf-8")
    (tmp_path / "deep").mkdir()
    write_lines(tmp_path / "deep" / "b.jsonl", {"text": "three"}, {"text": "one"}, {"messages": CHAT})
    (tmp_path / "c.bin").write_bytes(b"\xff")
    assert texts(tmp_path) == ["one", "two", "three", "user: hello\n\nassistant: who is there"]


def test_named_field(tmp_path: Path) -> None:
    file = write_lines(tmp_path / "a.jsonl", {"body": "here", "title": "no"})
    assert texts(file, field="body") == ["here"]
    with pytest.raises(
        TextError, match=r"a\.jsonl:1: expected the key 'text', found body, title .*--text-field"
    ):
        texts(file)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"a\.jsonl:2: expected one JSON object a line"),
        ("[1]", r"a\.jsonl:2: expected the key 'text', found list"),
        ('{"text": 3}', r"a\.jsonl:2\.text: expected text, or messages of role and content, found int"),
        ('{"messages": [{"role": "user"}]}', r"a\.jsonl:2\.messages: expected text, or messages"),
    ],
)
def test_broken_lines_are_named(line: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "ok"}\n' + line + "\n", encoding="utf-8")
    with pytest.raises(TextError, match=message):
        texts(tmp_path / "a.jsonl")


def test_chat_template(tmp_path: Path) -> None:
    tokenizer = write_tokenizer(tmp_path)
    rows = [{"messages": [{"role": "user", "content": f"bami {n} treku sa"}, *CHAT]} for n in range(8)]
    file = write_lines(tmp_path / "chats.jsonl", *rows)
    settings = {"tokens": 10_000, "length": 16, "seed": 0}
    with pytest.raises(TextError, match="chat_template: expected a tokenizer with a template, found none"):
        calibration_splits(tokenizer, file, chat_template=True, **settings)
    tokenizer.chat_template = "{% for m in messages %}<s>{{ m['content'] }}</s>{% endfor %}"
    plain = calibration_splits(tokenizer, file, **settings)
    shaped = calibration_splits(tokenizer, file, chat_template=True, **settings)
    assert sum(s.split.documents for s in shaped.values()) == 8
    assert plain["fit"].split.sha256 != shaped["fit"].split.sha256


def test_hub_dataset_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(TextError, match=r"org/data: .*or the package datasets.*pip install datasets"):
        texts("org/data")


def test_hub_dataset_is_streamed(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load_dataset(name: str, config: str | None, **options: Any) -> list[dict[str, str]]:
        asked.append((name, config, options))
        return [{"text": "one"}, {"text": "two"}]

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    assert texts("org/data:small:validation") == ["one", "two"]
    assert asked == [("org/data", "small", {"split": "validation", "streaming": True})]
    with pytest.raises(TextError, match=r"org/data\[0\]: expected the key 'body'"):
        texts("org/data", field="body")


def test_rare_experts_are_named(caplog: pytest.LogCaptureFixture) -> None:
    site = find_routers(pico_model("olmoe"))[0]
    moments = Moments.zero(32, 8)
    moments.chosen = np.array([50, 9, 8, 0, 50, 50, 50, 50])
    capture = LayerCapture(site, moments, torch.zeros(0, 32), torch.zeros(0, 32))
    with caplog.at_level(logging.WARNING):
        rare = warn_rare([capture], alpha=0.1)
    assert rare == [("model.layers.0.mlp.gate", 2, 8), ("model.layers.0.mlp.gate", 3, 0)]
    assert "layers.0.mlp.gate: 2 of 8 experts were chosen fewer than the 9 times" in caplog.text
    assert "expert 3 0x" in caplog.text
