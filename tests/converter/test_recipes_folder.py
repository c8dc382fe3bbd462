"""The shipped recipes: each fits its family's real shape; their README says what `Recipe` says."""

from __future__ import annotations

import dataclasses
import json
import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from spectral_convert.families import classify_routers
from spectral_convert.recipe import Recipe, load_recipe
from spectral_runtime.attaching import find_routers
from spectral_runtime.attaching.load import model_class

RECIPES = Path(__file__).parents[2] / "recipes"
GEMMA = {"enable_moe_block": True, "num_experts": 128, "top_k_experts": 8, "moe_intermediate_size": 704}
V2_LITE = {"hidden_size": 2048, "num_hidden_layers": 27, "num_attention_heads": 16, "num_key_value_heads": 16,
           "q_lora_rank": None, "moe_intermediate_size": 1408, "intermediate_size": 10944, "n_routed_experts": 64,
           "num_experts_per_tok": 6, "n_shared_experts": 2, "first_k_dense_replace": 1, "topk_method": "greedy",
           "n_group": 1, "topk_group": 1}  # fmt: skip
KIMI = {"n_routed_experts": 384, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1,
        "num_attention_heads": 64, "num_key_value_heads": 64}  # fmt: skip
SHAPES: dict[str, tuple[str, dict[str, Any], int, int, int]] = {
    "olmoe_1b_7b": ("olmoe", {}, 16, 64, 8),
    "qwen1_5_moe_a2_7b": ("qwen2_moe", {}, 24, 60, 4),
    "qwen3_30b_a3b": ("qwen3_moe", {"num_hidden_layers": 48, "norm_topk_prob": True}, 48, 128, 8),
    "qwen3_next_80b_a3b": ("qwen3_next", {}, 48, 512, 10),
    "deepseek_v2_lite": ("deepseek_v2", V2_LITE, 26, 64, 6),
    "deepseek_v3": ("deepseek_v3", {}, 58, 256, 8),
    "gpt_oss_20b": ("gpt_oss", {"num_hidden_layers": 24, "num_local_experts": 32}, 24, 32, 4),
    "gpt_oss_120b": ("gpt_oss", {}, 36, 128, 4),
    "mixtral_8x7b": ("mixtral", {}, 32, 8, 2),
    "gemma4_26b_a4b": ("gemma4_text", GEMMA, 30, 128, 8),
    "glm_4_5_air": ("glm4_moe", {}, 45, 128, 8),
    "kimi_k2": ("deepseek_v3", KIMI, 60, 384, 8),
}
"""Recipe to model_type, what its checkpoint's configuration sets beside the class defaults, routers, E, K."""


def test_every_recipe_has_a_shape() -> None:
    assert {file.stem for file in RECIPES.glob("*.yaml")} == SHAPES.keys()


@pytest.mark.parametrize("name", SHAPES)
def test_recipe_fits_its_family(name: str) -> None:
    model_type, settings, routers, experts, top_k = SHAPES[name]
    recipe = load_recipe(RECIPES / f"{name}.yaml")
    with warnings.catch_warnings(action="ignore"), torch.device("meta"):
        from transformers import CONFIG_MAPPING

        config = CONFIG_MAPPING[model_type](**settings)
        model = model_class(config).from_config(config)
    sites = find_routers(model)
    rule = classify_routers(sites[-1:])[0]
    assert (len(sites), rule.experts, rule.top_k) == (routers, experts, top_k)
    assert 3 * recipe.levels + recipe.colour <= experts
    assert recipe.sequence_length <= getattr(config, "max_position_embeddings", recipe.sequence_length)
    assert recipe.tokens * top_k / experts > 100 / recipe.alpha, "an expert should be seen often enough"
    header = (RECIPES / f"{name}.yaml").read_text(encoding="utf-8").split("\nmodel:")[0]
    assert re.search(rf"\b{experts} (routed )?experts", header)
    assert f"top-{top_k}" in header


def test_readme_says_what_the_recipe_says() -> None:
    page = (RECIPES / "README.md").read_text(encoding="utf-8")
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in page.splitlines()
        if line.startswith("| `")
    ]
    documented = [(row[0].strip("`"), row[1], row[2]) for row in rows]
    expected = [
        (field.name, json.dumps(field.default).strip('"') or '""', field.metadata["help"])
        for field in dataclasses.fields(Recipe)
    ]
    assert documented == expected
    for file in RECIPES.glob("*.yaml"):
        assert file.name in page


def test_the_recipe_of_a_bundle_runs_again(tmp_path: Path) -> None:
    stored = dataclasses.asdict(Recipe(model="org/name", calibration="text.txt", levels=2))
    folder = tmp_path / "bundle" / "spectral"
    folder.mkdir(parents=True)
    manifest = {"format_version": 1, "layers": [], "recipe": stored, "base_model": {}}
    (folder / "spectral_config.json").write_text(json.dumps(manifest), encoding="utf-8")
    for path in (tmp_path / "bundle", folder, folder / "spectral_config.json"):
        assert load_recipe(path) == Recipe(**stored)
