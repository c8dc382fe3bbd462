"""`spectral heal` on tiny models: it lowers the divergence, resumes exactly, stops when it diverges, loads with one call."""

from __future__ import annotations

import dataclasses
import inspect
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pico_models import write_checkpoint, write_text

from spectral_convert.cli import run, spectral
from spectral_convert.convert import convert_checkpoint
from spectral_convert.evaluate import evaluate_bundle
from spectral_convert.heal.progress import HealingDiverged
from spectral_convert.heal.settings import HealSettings
from spectral_convert.heal.train import Trainer
from spectral_convert.healing import heal_bundle
from spectral_runtime import load_bundle, load_model
from spectral_runtime.attaching.discovery import find_routers
from spectral_runtime.attaching.load import carrier_of, load_base
from spectral_runtime.attaching.scorer import Scorer
from spectral_runtime.errors import ConfigError, TextError, UserError

QUICK: dict[str, Any] = {"sequence_length": 32, "batch_tokens": 256, "sampled_length": 16, "steps": 12}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose experts matter, and bundles of it: `geometric`, `prefilter`."""
    folder = tmp_path_factory.mktemp("world")
    write_checkpoint(folder / "model", "olmoe", initializer_range=0.3)
    text = write_text(folder / "text.txt")
    made: dict[str, Any] = {"calibration": str(text), "tokens": 3000, "sequence_length": 64, "alpha": 0.2}
    for mode in ("geometric", "prefilter"):
        chosen = {"candidates": 4} if mode == "prefilter" else {}
        convert_checkpoint(
            str(folder / "model"), out=folder / mode, mode=mode, levels=1, colour=1, **made, **chosen
        )
    return folder


@pytest.fixture(scope="module")
def whole(world: Path) -> Path:
    """A healed checkpoint with its bundle inside."""
    heal_bundle(world / "geometric", out=world / "whole", scope="all", weights_lr=3e-3, **QUICK)
    return world / "whole"


def held_back(record: dict[str, Any]) -> tuple[float, float]:
    return record["held_back_before"]["divergence"], record["held_back_after"]["divergence"]


@pytest.mark.parametrize("mode", ["geometric", "prefilter"])
def test_geometry_alone_stays_a_bundle_of_the_same_base(world: Path, tmp_path: Path, mode: str) -> None:
    before = load_bundle(world / mode)
    healing = heal_bundle(world / mode, out=tmp_path / "healed", lr=0.02, **{**QUICK, "steps": 30})
    after = load_bundle(tmp_path / "healed")
    assert after.manifest.base_model == before.manifest.base_model
    assert [x.entry.mode for x in after.layers] == [mode] * 2
    assert [x.entry.candidates for x in after.layers] == [x.entry.candidates for x in before.layers]
    assert not (tmp_path / "healed" / "config.json").exists()
    assert not (tmp_path / "healed.work").exists()
    start, end = held_back(healing.record)
    assert end < (start if mode == "geometric" else start * 1.0001)
    stored = json.loads((after.path / "evidence" / "heal.json").read_text(encoding="utf-8"))
    assert stored == healing.record
    assert stored["tokens"] == 30 * 256
    assert "Healed (scope geometry)" in (tmp_path / "healed" / "README.md").read_text(encoding="utf-8")
    model, _ = load_model(tmp_path / "healed")
    assert model.spectral_attachment.layers[0].mode == mode


def test_healed_geometry_keeps_its_bound_and_new_measures(world: Path, tmp_path: Path) -> None:
    heal_bundle(world / "geometric", out=tmp_path / "healed", lr=0.05, **QUICK)
    model, _ = load_base(world / "model", dtype="float32")
    hidden = torch.randn(200, 32, generator=torch.Generator().manual_seed(1))
    for site, old, layer in zip(
        find_routers(model), load_bundle(world / "geometric").layers, load_bundle(tmp_path / "healed").layers,
        strict=True,
    ):  # fmt: skip
        assert layer.geometry is not None
        assert old.geometry is not None
        scorer = Scorer.of(layer.geometry)
        gap = (torch.nn.functional.linear(hidden, site.weight) - scorer.scores(hidden)).abs()
        offset = (torch.nn.functional.linear(scorer.mean[None], site.weight)[0] - scorer.beta).abs()
        assert bool((gap <= scorer.margins(hidden) + offset + 1e-4).all())
        assert not np.array_equal(old.geometry.projection, layer.geometry.projection)
        assert not np.array_equal(old.geometry.spread, layer.geometry.spread)
        assert layer.entry.certificate != old.entry.certificate
        assert len(layer.entry.explained) == 2


def test_all_loads_with_one_call_and_is_measured_against_the_original(whole: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere"
    shutil.copytree(whole, moved)
    model, tokenizer = load_model(moved)
    assert model.spectral_attachment.layers[0].mode == "geometric"
    assert tokenizer.eos_token_id == 2
    original, _ = load_base(whole.parent / "model", dtype="float32")
    name = "model.layers.0.mlp.experts.down_proj"
    assert not torch.equal(model.get_parameter(name), original.get_parameter(name))
    text = str(whole.parent / "text.txt")
    record = evaluate_bundle(moved, text=text, sequence_length=64)
    named = evaluate_bundle(moved, text=text, sequence_length=64, against=str(whole.parent / "model"))
    plain = evaluate_bundle(whole.parent / "geometric", text=text, sequence_length=64)
    assert record["ppl_base"] == named["ppl_base"] == plain["ppl_base"]
    assert record["ppl"] != plain["ppl"]
    assert record["protocol"] == plain["protocol"]
    own = evaluate_bundle(moved, text=text, sequence_length=64, against=str(moved))
    assert own["ppl"] == record["ppl"]
    assert own["ppl_base"] != record["ppl_base"]


def test_a_bundle_that_carries_its_model_takes_no_other_base(whole: Path) -> None:
    with pytest.raises(ConfigError, match="base: expected none, for a bundle that carries"):
        load_model(whole, base=whole.parent / "model")
    with pytest.raises(ConfigError, match="expected a bundle of an untouched model"):
        heal_bundle(whole, out=whole.parent / "again", steps=1)


def test_a_snapshot_of_the_hub_is_the_checkpoint_of_its_repository(tmp_path: Path) -> None:
    folder = tmp_path / "models--owner--name" / "snapshots" / "abc123" / "spectral"
    assert carrier_of(folder) == ("owner/name", "abc123")
    assert carrier_of(tmp_path / "plain" / "spectral") == (str(tmp_path / "plain"), None)


def test_a_healed_checkpoint_can_be_overwritten(world: Path, tmp_path: Path) -> None:
    out = tmp_path / "healed"
    for _ in range(2):
        heal_bundle(
            world / "geometric", out=out, scope="geometry+norms", overwrite=True, **{**QUICK, "steps": 1}
        )
    assert load_bundle(out).manifest.base_model.id == "."
    (out / "mine.txt").parent.joinpath("spectral", "mine.txt").write_text("x", encoding="utf-8")
    with pytest.raises(ConfigError, match="a new folder"):
        heal_bundle(world / "geometric", out=out, **QUICK)


def bytes_of(folder: Path) -> dict[str, bytes]:
    files = (file for file in folder.rglob("*.safetensors"))
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


@pytest.mark.parametrize(
    ("scope", "mode"), [("geometry", "geometric"), ("all", "geometric"), ("all", "prefilter")]
)
def test_interrupted_and_resumed_is_the_same_as_uninterrupted(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scope: str, mode: str
) -> None:
    settings = {**QUICK, "scope": scope, "checks": 12, "checkpoint_seconds": 0.0, "lr": 0.02}
    heal_bundle(world / mode, out=tmp_path / "whole", **settings)
    plain = Trainer._step

    def stopping(self: Trainer, fraction: float) -> None:
        if self.progress.step == 7:
            raise KeyboardInterrupt
        plain(self, fraction)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_step", stopping)
        with pytest.raises(KeyboardInterrupt):
            heal_bundle(world / mode, out=tmp_path / "parts", **settings)
    assert not (tmp_path / "parts").exists()
    heal_bundle(world / mode, out=tmp_path / "parts", resume=True, **settings)
    assert bytes_of(tmp_path / "parts") == bytes_of(tmp_path / "whole")


def test_a_diverging_run_stops_and_goes_on_from_the_last_good_state(world: Path, tmp_path: Path) -> None:
    settings = {**QUICK, "scope": "all", "checks": 20, "checkpoint_seconds": 0.0, "steps": 200, "warmup": 180}
    with pytest.raises(HealingDiverged, match=r"heal: expected a .* loss, found .*--resume and a smaller"):
        heal_bundle(world / "geometric", out=tmp_path / "healed", weights_lr=30.0, **settings)
    assert not (tmp_path / "healed").exists()
    healing = heal_bundle(
        world / "geometric",
        out=tmp_path / "healed",
        resume=True,
        weights_lr=1e-4,
        **{**settings, "steps": 30},
    )
    assert held_back(healing.record)[1] < healing.record["checks"][0]["divergence"] * 1.0001


def test_a_loss_that_is_not_a_number_stops_the_run(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = Trainer._step

    def poisoned(self: Trainer, fraction: float) -> None:
        plain(self, fraction)
        self.unread[-1] = self.unread[-1] * float("nan")

    monkeypatch.setattr(Trainer, "_step", poisoned)
    words = [str(world / "geometric"), "--out", str(tmp_path / "healed"), "--steps", "3"]
    with pytest.raises(SystemExit) as stopped:
        run(spectral, ["heal", *words, "--sequence-length", "32", "--batch-tokens", "64"])
    assert stopped.value.code == 2
    message = capsys.readouterr().err
    assert "expected a finite loss, found nan before step 1" in message
    assert "is kept in the work folder" in message


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "--minutes or --steps, one of them, found neither"),
        ({"steps": 2, "minutes": 1.0}, "one of them, found both"),
        ({"steps": 0}, "heal.steps: expected at least 1, found 0"),
        ({"minutes": -1.0}, "heal.minutes: expected more than 0"),
        ({"minutes": float("nan")}, "heal.minutes: expected more than 0"),
        ({"steps": 1, "scope": "everything"}, "heal.scope: expected .*geometry.*norms.*all"),
        ({"steps": 1, "mode": "dense"}, "heal.mode"),
        ({"steps": 1, "lr": 0.0}, "heal.lr: expected more than 0"),
        ({"steps": 1, "sampled": 1.5}, "heal.sampled: expected a share from 0 to 1"),
        ({"steps": 1, "sequence_length": 32, "sampled_length": 24}, "heal.sampled_length: expected a divisor of 32"),
        ({"steps": 1, "sequence_length": 512}, "heal.sequence_length: expected at most 256"),
        ({"steps": 1, "lrr": 0.1}, "lrr"),
    ],
)  # fmt: skip
def test_bad_settings_are_refused(
    world: Path, tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        heal_bundle(world / "geometric", out=tmp_path / "healed", **settings)
    assert not (tmp_path / "healed").exists()


def test_too_little_text_is_refused(world: Path, tmp_path: Path) -> None:
    text = tmp_path / "short.txt"
    text.write_text("\f".join(f"{n} few words in this" for n in range(4)), encoding="utf-8")
    with pytest.raises(TextError, match="expected 96 tokens of fit documents for windows of 32"):
        heal_bundle(world / "geometric", out=tmp_path / "healed", calibration=str(text), **QUICK)


def test_a_bundle_of_another_model_is_refused(world: Path, tmp_path: Path) -> None:
    other = write_checkpoint(tmp_path / "other", "olmoe", seed=3)
    with pytest.raises(UserError, match=r"expected router model\.layers\.0\.mlp\.gate with digest"):
        heal_bundle(world / "geometric", out=tmp_path / "healed", base=str(other), **QUICK)


def test_dense_layers_alone_cannot_be_healed(world: Path, tmp_path: Path) -> None:
    made = {"calibration": str(world / "text.txt"), "tokens": 3000, "sequence_length": 64, "alpha": 0.2}
    convert_checkpoint(str(world / "model"), out=tmp_path / "dense", mode="exact", levels=1, **made)
    with pytest.raises(ConfigError, match="expected a layer that routes by its geometry"):
        heal_bundle(tmp_path / "dense", out=tmp_path / "healed", **QUICK)
    healing = heal_bundle(tmp_path / "dense", out=tmp_path / "healed", mode="geometric", **QUICK)
    assert {layer.entry.mode for layer in healing.bundle.layers} == {"geometric"}


def test_adaptive_sets_get_a_margin_for_the_healed_geometry(world: Path, tmp_path: Path) -> None:
    made = {"calibration": str(world / "text.txt"), "tokens": 3000, "sequence_length": 64, "alpha": 0.2}
    convert_checkpoint(
        str(world / "model"), out=tmp_path / "sets", mode="prefilter", levels=1, adaptive=True, **made
    )
    before = load_bundle(tmp_path / "sets").layers[0].entry
    heal_bundle(tmp_path / "sets", out=tmp_path / "healed", lr=0.05, **QUICK)
    after = load_bundle(tmp_path / "healed").layers[0].entry
    assert after.mode == "prefilter"
    assert None not in (before.margin, after.margin)
    assert after.margin != before.margin
    assert after.certificate is not None
    assert after.margin == after.certificate.margin


def test_nothing_to_resume_is_said(world: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected a checkpoint of this healing, found none"):
        heal_bundle(world / "geometric", out=tmp_path / "healed", resume=True, **QUICK)


def test_minutes_end_the_run(world: Path, tmp_path: Path) -> None:
    settings = {key: value for key, value in QUICK.items() if key != "steps"}
    record = heal_bundle(world / "geometric", out=tmp_path / "healed", minutes=0.02, **settings).record
    assert record["steps"] >= 1
    assert record["seconds"] >= 1.2


def test_flags_keywords_and_settings_are_one() -> None:
    settings = {field.name for field in dataclasses.fields(HealSettings)}
    keywords = set(inspect.signature(heal_bundle).parameters)
    flags = {parameter.name for parameter in spectral.commands["heal"].params}
    assert settings <= keywords
    assert keywords <= flags


def test_command_line_prints_the_record(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["spectral"])
    words = [
        str(world / "geometric"),
        "--out",
        str(tmp_path / "healed"),
        "--steps",
        "2",
        "--scope",
        "geometry",
    ]
    words += ["--sequence-length", "32", "--batch-tokens", "64"]
    spectral.main(args=["heal", *words], prog_name="spectral", standalone_mode=False)
    shown = capsys.readouterr().out
    assert "2 steps, 128 tokens" in shown
    assert "evaluate split, healed: perplexity" in shown
