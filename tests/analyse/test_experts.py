"""`spectral analyse experts` on the demo checkpoint, healthy and damaged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from spectral_convert.analyse.experts import analyse_experts, cut_blocks, describe_experts, observe_model
from spectral_convert.analyse.labelled import label_text, plain_documents
from spectral_convert.analyse.observe import observe_routing
from spectral_convert.cli import spectral
from spectral_convert.families import classify_router
from spectral_runtime.attaching.discovery import find_routers
from spectral_runtime.attaching.load import load_base
from spectral_runtime.errors import ConfigError

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "recipes" / "demo" / "checkpoint"


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two domains: prose of the demo, and this project's own Python."""
    folder = tmp_path_factory.mktemp("text")
    books = (ROOT / "recipes" / "demo" / "books.txt").read_text(encoding="utf-8").split("\f")
    (folder / "books.txt").write_text("\f".join(books[:12]), encoding="utf-8")
    sources = sorted((ROOT / "runtime" / "spectral_runtime").glob("*.py"))[:12]
    (folder / "code.txt").write_text(
        "\f".join(p.read_text(encoding="utf-8") for p in sources), encoding="utf-8"
    )
    return folder


@pytest.fixture(scope="module")
def record(text: Path) -> dict[str, Any]:
    return analyse_experts(DEMO, text=[text], max_tokens=6000, sequence_length=256, permutations=20)


def test_record_holds_every_layer_and_is_plain_json(record: dict[str, Any]) -> None:
    assert len(record["layers"]) == 4
    assert record["refused"] == []
    json.dumps(record, allow_nan=False)
    for layer in record["layers"]:
        assert sum(layer["usage"]) == pytest.approx(1.0, abs=1e-4)
        assert 1 <= layer["load"]["effective"] <= layer["experts"] == 32
        assert len(layer["served"]) == 32
        assert layer["class"]["p_value"] < 0.05
        assert layer["class"]["bits"] > layer["class"]["null_bits"] + 0.05


def test_prose_and_code_are_told_apart_somewhere(record: dict[str, Any]) -> None:
    assert max(layer["topic"]["lift_max"] for layer in record["layers"]) > 1.4
    assert max(layer["topic"]["bits"] for layer in record["layers"]) > 0.02


def test_conclusions_are_sentences_with_their_numbers(record: dict[str, Any]) -> None:
    first = f"syntactic class explains {record['layers'][0]['class']['bits']:.3f} bits"
    assert first in record["conclusions"][0]
    assert any("over depth" in line for line in record["conclusions"])
    assert "word lists" in record["conclusions"][-1]


def test_protocol_names_what_was_read(record: dict[str, Any]) -> None:
    protocol = record["protocol"]
    assert protocol["domains"] == ["books", "code"]
    assert 5000 < protocol["tokens"] <= 6000
    assert len(protocol["text_sha256"]) == 64


def test_selectivity_does_not_see_a_shift_of_the_logits(text: Path) -> None:
    """Adding one vector to all gate rows adds one number to all logits of a token: nothing may change."""
    model, tokenizer = load_base(DEMO, dtype="float32")
    labelled = label_text(tokenizer, plain_documents([text]), length=256, max_tokens=1000)
    sites = find_routers(model)
    rules = [classify_router(site) for site in sites]
    before = observe_routing(model, sites, rules, labelled.windows)
    with torch.no_grad():
        width = sites[-1].weight.shape[1]
        sites[-1].weight.add_(0.05 * torch.randn(width, generator=torch.Generator().manual_seed(1)))
    after = observe_routing(model, sites, rules, labelled.windows)
    np.testing.assert_allclose(after[-1].margins.mean(), before[-1].margins.mean(), rtol=1e-3)
    assert after[-1].divergence == pytest.approx(before[-1].divergence, rel=1e-3)
    moved = [np.abs(r[-1].received[1] / np.maximum(r[-1].received[0], 1)).mean() for r in (before, after)]
    assert moved[0] != pytest.approx(moved[1], rel=1e-2)


def test_broken_layers_are_left_out_with_their_reason(text: Path) -> None:
    model, tokenizer = load_base(DEMO, dtype="float32")
    labelled = label_text(tokenizer, plain_documents([text]), length=256, max_tokens=1000)
    sites = find_routers(model)
    rules = [classify_router(site) for site in sites]
    with torch.no_grad():
        sites[1].weight.zero_()
        sites[3].weight[0, 0] = float("nan")
    routings = observe_routing(model, sites, rules, labelled.windows)
    assert [bool(routing.refused) for routing in routings] == [False, True, False, True]
    assert "only 4 experts" in routings[1].refused
    assert "not finite" in routings[3].refused
    record = describe_experts(routings, labelled, cut_blocks(labelled, 5, 0), tokenizer, 0)
    json.dumps(record, allow_nan=False)
    assert [item["path"][13] for item in record["refused"]] == ["1", "3"]
    assert record["depth"]["class"]["shape"] == "too few layers"


def test_a_gate_that_is_not_finite_does_not_stop_the_others(text: Path) -> None:
    model, tokenizer = load_base(DEMO, dtype="float32")
    labelled = label_text(tokenizer, plain_documents([text]), length=256, max_tokens=600)
    with torch.no_grad():
        find_routers(model)[3].weight[0, 0] = float("nan")
    routings = observe_model(model, labelled)
    assert [bool(routing.refused) for routing in routings] == [False, False, False, True]
    assert "NaN or infinity" in routings[3].refused


def test_text_or_tagged_not_both_not_neither() -> None:
    with pytest.raises(ConfigError, match="found neither — --text"):
        analyse_experts(DEMO)
    with pytest.raises(ConfigError, match="found both"):
        analyse_experts(DEMO, text=["a.txt"], tagged="b.zip")


def test_command_writes_evidence_and_json(text: Path, tmp_path: Path) -> None:
    evidence = tmp_path / "deep" / "experts.json"
    arguments = ["analyse", "experts", str(DEMO), "--text", str(text / "books.txt"), "--max-tokens", "1500"]
    arguments += ["--sequence-length", "128", "--permutations", "2", "--json", "--evidence", str(evidence)]
    result = CliRunner().invoke(spectral, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    shown, kept = json.loads(result.stdout), json.loads(evidence.read_text())
    assert kept["kind"] == "experts"
    assert kept["layers"] == shown["layers"]
    assert shown["layers"][0]["topic"] is None
