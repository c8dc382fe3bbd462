"""The whole conversion: what it leaves, that it repeats, and how it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from spectral_convert import convert, inspect_bundle
from spectral_convert.convert import Conversion, convert_checkpoint
from spectral_runtime import attach, load_bundle
from spectral_runtime.errors import ConfigError, ModelError, TextError

CHECKPOINT = Path(__file__).parents[2] / "recipes" / "demo" / "checkpoint"
TEXT = Path(__file__).parents[2] / "recipes" / "demo" / "books.txt"
QUICK: dict[str, Any] = {"calibration": str(TEXT), "tokens": 12_000, "sequence_length": 128, "alpha": 0.05}


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoint"
    shutil.copytree(CHECKPOINT, folder)
    return folder


def test_a_bundle_says_what_it_is(demo: Conversion) -> None:
    bundle = load_bundle(demo.bundle.path)
    manifest = bundle.manifest
    assert manifest.base_model.model_type == "olmoe"
    assert [layer.entry.path for layer in bundle.layers] == [f"model.layers.{i}.mlp.gate" for i in range(4)]
    assert len({split.sha256 for split in manifest.splits.values()}) == 3
    assert all(layer.entry.certificate is not None for layer in bundle.layers)
    assert manifest.recipe["levels"] == 2
    record = json.loads((bundle.path / "evidence" / "evaluate.json").read_text(encoding="utf-8"))
    assert record["tokens"] > 1000
    fits = json.loads((bundle.path / "evidence" / "fit.json").read_text(encoding="utf-8"))
    assert [(fit["ranks"], len(fit["explained"])) for fit in fits] == [([3, 6, 8], 3)] * 4
    assert record["ci95"][0] <= record["delta_pct"] <= record["ci95"][1]
    assert (
        (bundle.path.parent / "README.md")
        .read_text(encoding="utf-8")
        .startswith("---\nlibrary_name: spectral")
    )


def test_converting_again_gives_the_same_bytes(demo: Conversion, tmp_path: Path) -> None:
    again = convert_checkpoint(
        str(CHECKPOINT), out=tmp_path / "b", mode="prefilter", levels=2, colour=2, **QUICK
    )
    assert files(again.bundle.path) == files(demo.bundle.path)


def test_inspect_needs_no_model(demo: Conversion) -> None:
    facts = inspect_bundle(demo.bundle.path)
    assert [layer["candidates"] for layer in facts["layers"]] == [
        layer.entry.candidates for layer in demo.bundle.layers
    ]
    assert all(layer["recall"] > 0.8 for layer in facts["layers"])


def test_an_existing_bundle_is_not_overwritten_unasked(demo: Conversion) -> None:
    before = files(demo.bundle.path)
    with pytest.raises(ConfigError, match="overwrite"):
        convert_checkpoint(str(CHECKPOINT), out=demo.bundle.path.parent, **QUICK)
    assert files(demo.bundle.path) == before


@pytest.mark.parametrize("signal", [KeyboardInterrupt, SystemExit])
def test_an_interrupted_conversion_leaves_the_old_bundle(
    demo: Conversion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, signal: type[BaseException]
) -> None:
    out = tmp_path / "bundle"
    shutil.copytree(demo.bundle.path.parent, out)
    before = files(out)

    def interrupt(*_: Any, **__: Any) -> None:
        raise signal

    monkeypatch.setattr(convert, "evaluate_model", interrupt)
    with pytest.raises(signal):
        convert_checkpoint(str(CHECKPOINT), out=out, overwrite=True, **QUICK)
    assert files(out) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "bundle.work"], "pieces stay"


def test_a_dense_model_is_refused(tmp_path: Path) -> None:
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=8192, **sizes)).save_pretrained(tmp_path / "dense")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(CHECKPOINT / name, tmp_path / "dense" / name)
    with pytest.raises(ModelError, match="found no Mixture-of-Experts layer"):
        convert_checkpoint(str(tmp_path / "dense"), out=tmp_path / "out", **QUICK)
    assert not (tmp_path / "out").exists()


def test_a_missing_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="expected a complete transformers checkpoint"):
        convert_checkpoint(str(tmp_path / "nothing"), out=tmp_path / "out", **QUICK)


def test_a_missing_shard_is_refused(broken: Path, tmp_path: Path) -> None:
    (broken / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="expected a complete transformers checkpoint"):
        convert_checkpoint(str(broken), out=tmp_path / "out", **QUICK)


def poison(folder: Path, name: str) -> None:
    file = folder / "model.safetensors"
    tensors = safetensors.torch.load_file(file)
    tensors = {key: value.clone() for key, value in tensors.items()}
    tensors[name].view(-1)[0] = torch.nan
    safetensors.torch.save_file(tensors, file, metadata={"format": "pt"})


def test_nan_in_a_router_is_refused(broken: Path, tmp_path: Path) -> None:
    poison(broken, "model.layers.1.mlp.gate.weight")
    with pytest.raises(ModelError, match=r"model\.layers\.1\.mlp\.gate.*expected finite"):
        convert_checkpoint(str(broken), out=tmp_path / "out", **QUICK)


def test_nan_in_the_hidden_states_is_refused(broken: Path, tmp_path: Path) -> None:
    poison(broken, "model.layers.1.self_attn.q_proj.weight")
    with pytest.raises(ModelError, match=r"model\.layers\.1\.mlp\.gate: expected finite hidden states"):
        convert_checkpoint(str(broken), out=tmp_path / "out", **QUICK)
    assert not (tmp_path / "out").exists()


def test_too_little_text_for_the_certificate_is_refused(tmp_path: Path) -> None:
    settings = {**QUICK, "tokens": 3000, "alpha": 0.001}
    with pytest.raises(TextError, match=r"certify split: expected 999 tokens for alpha 0\.001"):
        convert_checkpoint(str(CHECKPOINT), out=tmp_path / "out", **settings)


def test_adaptive_sets_are_written_and_attached(model32: Any, tmp_path: Path) -> None:
    settings = {**QUICK, "mode": "prefilter", "levels": 2, "candidates": 12, "adaptive": True}
    made = convert_checkpoint(str(CHECKPOINT), out=tmp_path / "b", **settings)
    entries = [layer.entry for layer in load_bundle(made.bundle.path).layers]
    assert all(entry.margin is not None and entry.candidates > 12 for entry in entries)
    assert [q.mean_candidates for q in made.evaluation.layers] == pytest.approx([12.0] * 4, abs=1.0)
    assert "adaptive: at most" in (made.bundle.path.parent / "README.md").read_text(encoding="utf-8")
    with attach(model32, made.bundle) as attached:
        assert not any(layer.dense for layer in attached.layers)
    with attach(model32, made.bundle, candidates=12) as attached:
        assert {layer.margin for layer in attached.layers} == {None}


def test_the_closed_form_can_be_kept(tmp_path: Path) -> None:
    common = {**QUICK, "mode": "prefilter", "levels": 2, "candidates": 12}
    closed, refined = (
        convert_checkpoint(str(CHECKPOINT), out=tmp_path / str(on), refine=on, **common).evaluation.layers
        for on in (False, True)
    )
    assert sum(q.kept_mass for q in refined) > sum(q.kept_mass for q in closed)


def test_a_budget_is_spent_and_reported(tmp_path: Path) -> None:
    settings = {**QUICK, "levels": 2, "max_ppl_increase": "3%"}
    made = convert_checkpoint(str(CHECKPOINT), out=tmp_path / "b", **settings)
    assert made.budget is not None
    assert made.budget["rounds"][-1]["increase_pct"] <= 3.0 or made.budget["cost"] == made.budget["gate_cost"]
    stored = json.loads((made.bundle.path / "evidence" / "budget.json").read_text(encoding="utf-8"))
    assert stored == json.loads(json.dumps(made.budget))
    modes = [layer.entry.mode for layer in load_bundle(made.bundle.path).layers]
    assert modes == [layer["mode"] for layer in made.budget["layers"]]
    again = convert_checkpoint(recipe=made.bundle.path, out=tmp_path / "again")
    assert [layer.entry.candidates for layer in again.bundle.layers] == [
        layer["candidates"] for layer in made.budget["layers"]
    ]
