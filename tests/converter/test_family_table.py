"""The table of families: every architecture that declares routers works or is refused with the reason."""

from __future__ import annotations

import json
import warnings

import pytest
import torch
from click.testing import CliRunner
from pico_models import FAMILIES, pico_model
from torch import nn

from spectral_convert.cli import spectral
from spectral_convert.families.table import FamilyRow, declaring_types, family_row, list_families
from spectral_runtime.attaching import find_routers
from spectral_runtime.errors import ModelError

REFUSED = {
    "doge": "product keys",
    "zaya": "not a linear gate",
    "inkling_text": "shared experts",
    "inkling_mm_model": "shared experts",
    "ernie4_5_vl_moe": "chooses by token type",
    "nllb-moe": "encoder-decoder",
    "switch_transformers": "encoder-decoder",
    "openai_privacy_filter": "classifier",
    "qwen3_omni_moe": "not a causal language model",
    "step3p5": "not a causal language model",
}
"""Beside these, only the parts of composite models are refused."""


@pytest.fixture(scope="module")
def rows() -> dict[str, FamilyRow]:
    with warnings.catch_warnings(action="ignore"):  # transformers' own remarks about default configurations
        return {row.model_type: row for row in list_families()}


def test_every_tested_family_is_supported(rows: dict[str, FamilyRow]) -> None:
    for family in FAMILIES:
        assert rows[family].supported, rows[family].reason
        assert rows[family].rule
        assert 1 <= rows[family].top_k <= rows[family].experts


def test_every_other_family_works_or_says_why(rows: dict[str, FamilyRow]) -> None:
    assert len(rows) == len(set(declaring_types())) > 60
    for name, row in rows.items():
        assert row.supported == (not row.reason), name
        if not row.supported:
            assert name in REFUSED or "a part of one" in row.reason, (name, row.reason)
            assert REFUSED.get(name, "") in row.reason, (name, row.reason)


def test_command_prints_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spectral_convert.families.table.declaring_types", lambda: iter(["olmoe", "zaya"]))
    done = CliRunner().invoke(spectral, ["families", "--json"], catch_exceptions=False)
    first, second = json.loads(done.stdout)["families"]
    assert first["model_type"] == "olmoe"
    assert first["rule"] == "softmax -> top 8 of 64, weight = score"
    assert second["supported"] is False
    shown = CliRunner().invoke(spectral, ["families"], catch_exceptions=False).stdout
    assert "olmoe" in shown
    assert "not a linear gate" in shown


def test_a_family_that_does_not_build_is_refused_not_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: str) -> object:
        raise TypeError("no such size")

    monkeypatch.setattr("spectral_convert.families.table.classify_family", broken)
    assert "TypeError: no such size" in family_row("olmoe").reason


class Mxfp4GptOssMLP(nn.Module):
    """Stands in for the block that transformers puts in place when it loads MXFP4 weights with kernels."""

    def __init__(self, router: nn.Module) -> None:
        super().__init__()
        self.router = router


def test_mxfp4_blocks_are_refused() -> None:
    model = pico_model("gpt_oss")
    model.model.layers[1].mlp = Mxfp4GptOssMLP(model.model.layers[1].mlp.router)
    with pytest.raises(ModelError, match=r"layers\.1\.mlp: .*Mxfp4GptOssMLP.*dequantize=True"):
        find_routers(model)


def test_kernels_of_the_hub_are_refused() -> None:
    model = pico_model("olmoe")
    block = model.model.layers[0].mlp
    block.forward = lambda hidden: hidden
    with pytest.raises(ModelError, match=r"layers\.0\.mlp\.gate: .*replaced forward.*use_kernels=False"):
        find_routers(model)


def test_megamoe_is_refused() -> None:
    model = pico_model("olmoe")
    model.config._experts_implementation_internal = "deepgemm_megamoe"
    with pytest.raises(ModelError, match=r"deepgemm_megamoe.*grouped_mm"):
        find_routers(model)


def test_dense_model_is_refused() -> None:
    with pytest.raises(ModelError, match=r"Linear: expected a model with routers"):
        find_routers(nn.Linear(2, 2))


def test_rules_do_not_need_the_weights() -> None:
    from spectral_convert.families import classify_routers

    model = pico_model("deepseek_v3")
    known = classify_routers(find_routers(model))
    assert classify_routers(find_routers(model.to("meta"))) == known
    assert torch.device("meta") == next(model.parameters()).device


def test_mxfp4_checkpoints_are_loaded_dequantised() -> None:
    from transformers import GptOssConfig

    from spectral_runtime.attaching.load import plain_weights

    quantised = GptOssConfig(quantization_config={"quant_method": "mxfp4"})
    assert plain_weights(quantised)["quantization_config"].dequantize is True
    assert plain_weights(GptOssConfig()) == {}
