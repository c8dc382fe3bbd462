"""Recipes: strict keys, ranges, relative paths, and one source of truth with flags and keywords."""

from __future__ import annotations

import dataclasses
import inspect
from pathlib import Path

import pytest

from spectral_convert.cli import spectral
from spectral_convert.convert import convert_checkpoint
from spectral_convert.recipe import Recipe, load_recipe, resolve
from spectral_runtime.errors import ConfigError


def test_a_misspelt_key_names_the_right_one(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("levles: 3\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"r\.yaml\.levles: .*did you mean 'levels'\?.*legal keys: model"):
        load_recipe(path)


def test_a_wrong_type_names_the_key(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("levels: many\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"r\.yaml\.levels: expected int, found"):
        load_recipe(path)


def test_yaml_that_is_none_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("a: [", encoding="utf-8")
    with pytest.raises(ConfigError, match="expected a YAML recipe"):
        load_recipe(path)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("levels", 0, "recipe.levels: expected at least 1, found 0"),
        ("colour", -1, "recipe.colour: expected at least 0"),
        ("alpha", 0.0, "recipe.alpha: expected a share between 0 and 1"),
        ("alpha", 1.5, "recipe.alpha: expected a share between 0 and 1"),
        ("candidates", 0, "recipe.candidates: expected at least 1"),
        ("mode", "magic", "recipe.mode: expected one of auto, exact"),
        ("colours", 3, "recipe.colours: .*did you mean 'colour'"),
    ],
)
def test_values_out_of_range_are_refused(key: str, value: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve(None, {"model": "m", "calibration": "c", key: value})


def test_calibration_has_no_default_and_says_why() -> None:
    with pytest.raises(
        ConfigError, match=r"recipe\.calibration: .*a certificate speaks only for text like its own"
    ):
        resolve(None, {"model": "m"})


def test_paths_beside_the_recipe_are_found(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("x", encoding="utf-8")
    (tmp_path / "r.yaml").write_text("model: org/name\ncalibration: text.txt\n", encoding="utf-8")
    recipe = load_recipe(tmp_path / "r.yaml")
    assert recipe.calibration == str(tmp_path / "text.txt")
    assert recipe.model == "org/name"


def test_keywords_go_over_the_recipe() -> None:
    base = Recipe(model="m", calibration="c", levels=2, colour=5)
    merged = resolve(base, {"levels": 3, "colour": None})
    assert (merged.levels, merged.colour) == (3, 5)


def test_flags_keywords_and_recipe_are_one() -> None:
    settings = {field.name for field in dataclasses.fields(Recipe)}
    keywords = set(inspect.signature(convert_checkpoint).parameters)
    assert settings <= keywords
    flags = {parameter.name for parameter in spectral.commands["convert"].params}
    assert settings <= flags
    assert keywords <= flags
