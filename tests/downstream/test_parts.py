"""Minimal pairs, long context and strided windows: arithmetic by hand, and the demo bundle end to end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from transformers import AutoTokenizer

from spectral_convert.cli import spectral
from spectral_convert.compare import compare_evidence
from spectral_convert.convert import convert_checkpoint
from spectral_convert.downstream.long_context import by_position, full_windows, lengths, probe_rows, probes
from spectral_convert.downstream.minimal_pairs import compare_choices, mcnemar_exact, pair_windows, read_pairs
from spectral_convert.downstream.sequences import Scored
from spectral_convert.evaluate import evaluate_bundle
from spectral_convert.text import strided_windows
from spectral_runtime.errors import ConfigError, TextError

DEMO = Path(__file__).parents[2] / "recipes" / "demo"


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(DEMO / "checkpoint")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("downstream") / "demo"
    settings: dict[str, Any] = {"tokens": 6000, "sequence_length": 128, "alpha": 0.05, "levels": 2}
    convert_checkpoint(recipe=DEMO / "demo.yaml", out=out, **settings)
    return out


@pytest.mark.parametrize(("length", "stride"), [(8, 3), (8, 8), (5, 1), (100, 50)])
def test_strided_windows_score_every_token_once(length: int, stride: int) -> None:
    ids = list(range(37))
    windows = list(strided_windows(ids, 0, length, stride))
    scored = [token for window in windows for token in window.ids[window.scored_from :]]
    first = [token for token in ids if token not in scored]
    assert sorted(scored) == scored
    assert len(scored) == len(set(scored))
    assert first == ([0])
    context = [window.scored_from for window in windows[1:]]
    assert all(value == length - stride for value in context)


def test_mcnemar_by_hand() -> None:
    assert mcnemar_exact(0, 0) == 1.0
    assert mcnemar_exact(0, 5) == pytest.approx(2 / 32)
    assert mcnemar_exact(3, 3) == 1.0
    assert mcnemar_exact(10, 1) == mcnemar_exact(1, 10) == pytest.approx(2 * 12 / 2**11)


def write_pairs(folder: Path, rows: list[dict[str, Any]], name: str = "p.jsonl") -> Path:
    (folder / name).write_text("\n".join(json.dumps(row) for row in rows))
    return folder


def test_pairs_are_grouped(tmp_path: Path) -> None:
    row = {"sentence_good": "The cat sleeps.", "sentence_bad": "The cat sleep."}
    write_pairs(tmp_path, [{**row, "linguistics_term": "agreement", "UID": "one"}] * 3, "a.jsonl")
    write_pairs(tmp_path, [row] * 5, "b.jsonl")
    content = read_pairs(tmp_path, limit=2)
    assert [pair.phenomenon for pair in content.pairs] == ["agreement", "agreement", "b", "b"]
    base, converted = np.array([True, True, False, True]), np.array([True, False, True, True])
    record = compare_choices(content.pairs, base, converted)
    assert [row["name"] for row in record["phenomena"]] == ["agreement", "b"]
    assert record["phenomena"][0]["lost"] == 1
    assert record["overall"]["delta"] == 0.0
    assert record["overall"]["ci95"][0] < 0 < record["overall"]["ci95"][1]


@pytest.mark.parametrize("line", ["nonsense", "{}", '{"sentence_good": 1, "sentence_bad": "x"}', "[1]"])
def test_unreadable_pairs(tmp_path: Path, line: str) -> None:
    (tmp_path / "x.jsonl").write_text(line)
    with pytest.raises(TextError, match="expected JSONL rows with sentence_good"):
        read_pairs(tmp_path)


def test_no_pairs(tmp_path: Path) -> None:
    with pytest.raises(TextError, match="expected minimal pairs"):
        read_pairs(tmp_path)


def test_first_word_counts(tmp_path: Path, tokenizer: Any) -> None:
    write_pairs(tmp_path, [{"sentence_good": "Who left?", "sentence_bad": "Whom left?"}])
    windows, start = pair_windows(tokenizer, read_pairs(tmp_path).pairs)
    assert start == "<|endoftext|>"
    assert [window.ids[0] for window in windows] == [tokenizer.bos_token_id] * 2


def test_lengths_double_up_to_the_limit() -> None:
    assert lengths(128) == [128]
    assert lengths(700) == [128, 256, 512, 700]
    assert lengths(1024) == [128, 256, 512, 1024]


def test_probes_ask_for_what_they_hide(tokenizer: Any) -> None:
    filler = tokenizer("It was a quiet afternoon in the garden, and nobody spoke. " * 40)["input_ids"]
    found = probes(tokenizer, filler, 256, trials=3, seed=0)
    for probe in found:
        ids = np.array(probe.window.ids)
        answer = ids[1:][probe.asked]
        assert len(ids) <= probe.length
        if probe.kind == "copy":
            half = len(ids) // 2
            assert (ids[:half] == ids[half:]).all()
            assert (answer == ids[half + 1 :]).all()
            continue
        key = tokenizer.decode(answer).strip()
        assert len(key) == 5
        assert tokenizer.decode(ids).count(key) == (3 if probe.kind == "passkey" else 1)
    kinds = [probe.kind for probe in found if probe.length == 256]
    assert {kind: kinds.count(kind) for kind in kinds} == {"passkey": 3, "no passkey": 3, "copy": 3}


def test_a_filler_shorter_than_the_context(tokenizer: Any) -> None:
    found = probes(tokenizer, list(range(100, 230)), 512, trials=1, seed=0)
    assert max(len(probe.window.ids) for probe in found) > 500


def test_positions_and_rows_by_hand(tokenizer: Any) -> None:
    windows = full_windows(list(range(300)), 150, 16)
    assert [len(window.ids) for window in windows] == [150, 150]
    base = [Scored(np.ones(149), np.ones(149, bool))] * 2
    worse = [Scored(np.r_[np.ones(128), np.full(21, 1.5)], np.zeros(149, bool))] * 2
    rows = by_position(windows, base, worse, 0)
    assert [(row["from"], row["to"], row["tokens"]) for row in rows] == [(1, 128, 256), (129, 149, 42)]
    assert rows[0]["delta_pct"] == pytest.approx(0.0)
    assert rows[1]["delta_pct"] == pytest.approx(100 * np.expm1(0.5))


def test_probe_rows_pair_both_models(tokenizer: Any) -> None:
    asked = [p for p in probes(tokenizer, list(range(100, 400)), 128, 4, 0) if p.kind == "copy"]
    base = [Scored(np.full(127, 2.0), np.ones(127, bool))] * 4
    worse = [Scored(np.full(127, 2.5), np.zeros(127, bool))] * 4
    (row,) = probe_rows(asked, base, worse, 0)
    assert (row["exact_base"], row["exact"]) == (1.0, 0.0)
    assert row["delta_nll"] == pytest.approx(0.5)
    assert row["ci95"] == pytest.approx([0.5, 0.5])


def run(bundle: Path, folder: Path, name: str, **settings: Any) -> tuple[dict[str, Any], Path]:
    path = folder / name
    options: dict[str, Any] = {"text": DEMO / "books.txt", "max_tokens": 700, "sequence_length": 128}
    return evaluate_bundle(bundle, evidence=path, **options | settings), path


def test_evaluate_everything_and_compare(bundle: Path, tmp_path: Path) -> None:
    rows = [{"sentence_good": "The man was tired.", "sentence_bad": "The man were tired."}] * 3
    pairs = write_pairs(tmp_path, rows)
    more: dict[str, Any] = {"pairs": pairs, "long_context": True, "max_length": 128, "trials": 1}
    record, first = run(bundle, tmp_path, "a.json", stride=64, **more)
    json.dumps(record, allow_nan=False)
    assert record["pairs"]["overall"]["pairs"] == 3
    assert {row["kind"] for row in record["long_context"]["probes"]} == {"passkey", "no passkey", "copy"}
    assert record["protocol"]["text"]["windows"] == "64 apart"
    wide, second = run(bundle, tmp_path, "b.json", stride=64, candidates=32, mode="prefilter", **more)
    assert wide["delta_pct"] == 0.0
    assert wide["ppl_base"] == record["ppl_base"]
    compared = compare_evidence(first, second)
    by_name = {row["measure"]: row for row in compared["measures"]}
    assert by_name["ppl_base"]["delta"] == 0.0
    assert by_name["ppl"]["delta"] == pytest.approx(wide["ppl"] - record["ppl"])


def test_a_delta_across_protocols_is_refused(bundle: Path, tmp_path: Path) -> None:
    _, first = run(bundle, tmp_path, "a.json")
    _, second = run(bundle, tmp_path, "b.json", sequence_length=96)
    with pytest.raises(
        ConfigError, match=r"expected one protocol, found text: .*128 apart.*against.*96 apart"
    ):
        compare_evidence(first, second)
    first.write_text('{"ppl": 1.0}')
    with pytest.raises(ConfigError, match="expected evidence with a protocol"):
        compare_evidence(first, second)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "expected something to evaluate on"),
        ({"pairs": "x", "long_context": True}, "expected --text to fill the context"),
        ({"text": "x", "stride": 2000}, r"expected 1 to 1024 \(the sequence length\), found 2000"),
    ],
)
def test_settings_are_refused_before_anything_loads(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        evaluate_bundle("no such bundle", **settings)


def test_tables_fit_80_columns(bundle: Path, tmp_path: Path) -> None:
    rows = [{"sentence_good": "A dog barks.", "sentence_bad": "A dog bark.", "field": "f" * 50}]
    arguments = ["evaluate", str(bundle), "--text", str(DEMO / "books.txt"), "--max-tokens", "600"]
    arguments += ["--pairs", str(write_pairs(tmp_path, rows)), "--long-context", "--max-length", "128"]
    result = CliRunner().invoke(spectral, [*arguments, "--trials", "1"], catch_exceptions=False)
    tables = [line for line in result.stdout.splitlines() if not line.startswith("perplexity")]
    assert max(map(len, tables)) <= 80
    assert "\x1b" not in result.stdout
    assert "minimal pairs" in result.stdout
