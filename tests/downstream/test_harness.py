"""lm-evaluation-harness: its absence is one line with a remedy; what it returns is compared row by row."""

from __future__ import annotations

import sys
import types
from typing import Any

import pytest

from spectral_convert.downstream.harness import compare_tasks, require_harness, run_tasks
from spectral_runtime.errors import ConfigError


class Manager:
    def __init__(self, include_path: str | None = None) -> None:
        self.include_path = include_path

    def match_tasks(self, names: list[str]) -> list[str]:
        return [name for name in names if name == "arc_easy"]


def install(monkeypatch: pytest.MonkeyPatch, evaluate: Any) -> None:
    """A stand-in with the names that version 0.4 of the harness has."""
    modules = {
        name: types.ModuleType(name) for name in ("lm_eval", "lm_eval.models.huggingface", "lm_eval.tasks")
    }
    modules["lm_eval"].simple_evaluate = evaluate  # type: ignore[attr-defined]
    modules["lm_eval.models.huggingface"].HFLM = lambda **given: given  # type: ignore[attr-defined]
    modules["lm_eval.tasks"].TaskManager = Manager  # type: ignore[attr-defined]
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)


def results(**_: Any) -> dict[str, Any]:
    metrics = {"acc,none": 0.25, "acc_stderr,none": 0.01, "alias": "arc_easy", "sample_len": 12}
    return {
        "results": {"arc_easy": metrics},
        "n-samples": {"arc_easy": {"effective": 12}},
        "versions": {"arc_easy": 1.0},
    }


def test_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(ConfigError, match=r"pip install 'lm-eval\[hf\]'"):
        require_harness()


def test_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, results)
    found = run_tasks("model", "tokenizer", ["arc_easy"], limit=3, folder=None, seed=1)
    (row,) = compare_tasks(found, found)
    assert (row["task"], row["metric"], row["base"], row["delta"]) == ("arc_easy", "acc", 0.25, 0.0)
    assert (row["stderr"], row["samples"]) == (0.01, 12)


def test_unknown_task(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, results)
    with pytest.raises(ConfigError, match="expected known tasks, found nonsense"):
        run_tasks("model", "tokenizer", ["arc_easy", "nonsense"], limit=None, folder=None, seed=0)


def test_data_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(**_: Any) -> Any:
        raise ConnectionError("no route to the Hub\nmore")

    install(monkeypatch, offline)
    with pytest.raises(ConfigError, match="found no route to the Hub —"):
        run_tasks("model", "tokenizer", ["arc_easy"], limit=None, folder=None, seed=0)
