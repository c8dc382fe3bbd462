"""The plan tells what a conversion needs from the configuration and the headers, and touches no weight."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from pico_models import write_checkpoint

from spectral_convert.cli import spectral
from spectral_convert.plan import plan_conversion
from spectral_runtime.errors import ModelError


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("plan") / "model", "deepseek_v3", num_hidden_layers=3)


def test_plan_of_a_checkpoint(checkpoint: Path, tmp_path: Path) -> None:
    record = plan_conversion(str(checkpoint), out=tmp_path / "bundle")
    assert (record["layers"], record["moe_layers"], record["experts"], record["top_k"]) == (3, 2, 8, 2)
    assert record["first_router"] == "model.layers.1.mlp.gate"
    assert record["rules"][0].startswith("sigmoid + bias -> top 2 of 8, 2 of 4 groups")
    assert record["refused"] == []
    size = (checkpoint / "model.safetensors").stat().st_size
    assert 0.9 * size < record["bytes_to_read"] < size
    assert record["peak_memory"] > size
    assert record["seconds"] > 0
    assert record["bundle_bytes"] > 0


def test_plan_reads_no_weight(checkpoint: Path, tmp_path: Path) -> None:
    whole = (checkpoint / "model.safetensors").read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "config.json").write_bytes((checkpoint / "config.json").read_bytes())
    (bare / "model.safetensors").write_bytes(whole[:header])
    assert plan_conversion(str(bare))["bytes_to_read"] == plan_conversion(str(checkpoint))["bytes_to_read"]


def test_plan_of_a_configuration_alone_says_what_is_missing(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((checkpoint / "config.json").read_bytes())
    record = plan_conversion(str(tmp_path))
    assert record["moe_layers"] == 2
    assert "expected the shard model.safetensors" in record["refused"][0]


def test_plan_tells_what_will_be_refused(checkpoint: Path, tmp_path: Path) -> None:
    record = plan_conversion(str(checkpoint), alpha=0.0001, tokens=1000, candidates=1)
    assert any("alpha 0.0001 needs 9999 tokens" in reason for reason in record["refused"])
    assert any("candidates 1 are not between 2 (K) and 8 (E)" in reason for reason in record["refused"])
    dense = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    dense["first_k_dense_replace"], dense["mlp_layer_types"] = 3, ["dense"] * 3
    (tmp_path / "config.json").write_text(json.dumps(dense), encoding="utf-8")
    assert "no Mixture-of-Experts layer" in plan_conversion(str(tmp_path))["refused"][-1]
    with pytest.raises(ModelError, match=r"nowhere: expected a readable config\.json"):
        plan_conversion(str(tmp_path / "nowhere"))


def test_commands(checkpoint: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(
        spectral, ["plan", str(checkpoint), "--levels", "2", "--json"], catch_exceptions=False
    )
    assert json.loads(done.stdout)["experts"] == 8
    shown = CliRunner().invoke(spectral, ["plan", str(checkpoint)], catch_exceptions=False).stdout
    assert "rule      sigmoid + bias" in shown
    arguments = [
        "convert",
        str(checkpoint),
        "--calibration",
        "x",
        "--out",
        str(tmp_path / "b"),
        "--dry-run",
        "--json",
    ]
    dry = CliRunner().invoke(spectral, arguments, catch_exceptions=False)
    assert json.loads(dry.stdout)["moe_layers"] == 2
    assert not (tmp_path / "b").exists()
