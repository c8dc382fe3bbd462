"""The recipe: every setting of a conversion, once; flags, keywords and YAML keys are all made from these fields."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from spectral_runtime.errors import ConfigError
from spectral_runtime.strict import parse


def setting(default: Any, text: str) -> Any:
    """A recipe field with its one-line explanation, which becomes the flag's help."""
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True, slots=True)
class Budget:
    """What a conversion may lose; the cheapest way to stay within it is looked for."""

    max_increase: float | None
    """Percent of perplexity."""
    min_recall: float | None
    """Share of the gate's experts that each layer keeps."""
    target: Literal["cpu", "cuda"]
    adaptive: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """All settings of one conversion."""

    model: str = setting("", "hub id or folder of the checkpoint")
    revision: str | None = setting(None, "commit or branch of the checkpoint on the Hub")
    calibration: str | None = setting(
        None, "text: file or folder of .txt and .jsonl, or a Hub dataset as owner/name[:config[:split]]"
    )
    text_field: str = setting(
        "text", "key of the text in .jsonl lines and dataset rows; `messages` holds chats"
    )
    chat_template: bool = setting(False, "put `messages` through the tokenizer's chat template")
    tokens: int = setting(400_000, "calibration tokens in all, for the three splits together")
    sequence_length: int = setting(512, "tokens per forward window")
    levels: int = setting(4, "nested 3-D levels L")
    colour: int = setting(0, "spectral dimensions S beyond the points")
    mode: Literal["auto", "exact", "prefilter", "geometric", "dense"] = setting(
        "auto", "what the converted routers do; auto decides per layer from the certificate"
    )
    refine: bool = setting(
        True, "train the closed form to miss less expert weight (modes auto and prefilter)"
    )
    adaptive: bool = setting(
        False,
        "candidate sets of their own size for every token: the certified margin, or a mean size of --candidates",
    )
    candidates: int | None = setting(None, "C of prefilter for all layers; default: the certified number")
    max_ppl_increase: str | None = setting(
        None,
        "budget, such as 0.5%: mode, levels, colour and candidates are chosen per layer to stay within it",
    )
    min_recall: float | None = setting(
        None, "budget: share of the gate's experts that every layer must keep, such as 0.99"
    )
    target: Literal["cpu", "cuda"] = setting("cpu", "back-end whose modelled cost a budget minimises")
    alpha: float = setting(0.01, "largest expected share of expert weight the candidates may miss")
    seed: int = setting(0, "seed of the document split")
    device: str = setting("cpu", "torch device that runs the model")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = setting(
        "auto", "dtype of the model while converting; auto is float32 on CPU, else the checkpoint's"
    )
    gate_rows: bool = setting(
        False, "store the gate's rows too, so that prefilter and exact run without the model"
    )

    def __post_init__(self) -> None:
        _at_least("levels", self.levels, 1)
        _at_least("colour", self.colour, 0)
        _at_least("tokens", self.tokens, 1)
        _at_least("sequence_length", self.sequence_length, 2)
        if self.candidates is not None:
            _at_least("candidates", self.candidates, 1)
        if self.min_recall is not None and not 0.0 < self.min_recall <= 1.0:
            expected = "a share above 0 and at most 1"
            raise ConfigError("recipe.min_recall", expected=expected, found=str(self.min_recall))
        if self.budget is not None and (self.mode != "auto" or self.candidates is not None):
            found = f"mode {self.mode}, candidates {self.candidates}"
            remedy = "drop the budget, or --mode and --candidates"
            raise ConfigError(
                "recipe budget", expected="mode auto, which chooses", found=found, remedy=remedy
            )
        if not 0.0 < self.alpha < 1.0:
            raise ConfigError("recipe.alpha", expected="a share between 0 and 1", found=str(self.alpha))

    @property
    def splitting(self) -> dict[str, Any]:
        """What decides which documents, and which of their windows, each split gets."""
        return {
            "tokens": self.tokens, "length": self.sequence_length, "seed": self.seed,
            "field": self.text_field, "chat_template": self.chat_template,
        }  # fmt: skip

    @property
    def budget(self) -> Budget | None:
        """The budget that is asked for, if any."""
        if self.max_ppl_increase is None and self.min_recall is None:
            return None
        most = None if self.max_ppl_increase is None else _percent(self.max_ppl_increase)
        return Budget(most, self.min_recall, self.target, self.adaptive)

    @property
    def trains(self) -> bool:
        """Whether fits are refined: geometry that only filters is trained for that."""
        return self.refine and self.mode in ("auto", "prefilter")


def _percent(text: str) -> float:
    """The number of a percentage; a bare number could mean either."""
    number = text.strip().removesuffix("%")
    try:
        value = float(number)
    except ValueError:
        value = math.nan
    if number == text.strip() or not 0.0 <= value < math.inf:
        expected = "a percentage of at least 0, such as 0.5%"
        raise ConfigError("recipe.max_ppl_increase", expected=expected, found=repr(text))
    return value


def _at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise ConfigError(f"recipe.{name}", expected=f"at least {least}", found=str(value))


def load_recipe(path: str | Path) -> Recipe:
    """Reads a YAML recipe, or the one stored in a bundle; relative paths are relative to its folder.

    Args:
        path: the YAML file, a bundle's folder, or its `spectral_config.json`.

    Raises:
        ConfigError: unreadable file, unknown or mistyped key, with the dotted path and the legal keys.
    """
    path = _recipe_file(Path(path))
    try:
        data = _recipe_of(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(str(path), expected="a YAML recipe", found=reason) from error
    recipe = parse(Recipe, data if data is not None else {}, where=path.name)
    return dataclasses.replace(recipe, **_beside(path.parent, recipe))


def _recipe_file(path: Path) -> Path:
    stored = (path / "spectral" / "spectral_config.json", path / "spectral_config.json")
    return next((file for file in stored if file.is_file()), path)


def _recipe_of(data: Any) -> Any:
    """A bundle's manifest holds the recipe that made it, beside its layers."""
    stored = isinstance(data, dict) and {"format_version", "layers", "recipe"} <= data.keys()
    return data["recipe"] if stored else data


def _beside(folder: Path, recipe: Recipe) -> dict[str, Any]:
    paths = {"model": recipe.model, "calibration": recipe.calibration}
    return {key: str(folder / value) for key, value in paths.items() if value and (folder / value).exists()}


def resolve(recipe: Recipe | str | Path | None, settings: dict[str, Any]) -> Recipe:
    """The recipe with keywords laid over it; settings that are None are not given.

    Raises:
        ConfigError: for unknown settings or values out of range.
    """
    base = recipe if isinstance(recipe, Recipe) else load_recipe(recipe) if recipe else Recipe()
    given = {key: value for key, value in settings.items() if value is not None}
    merged = parse(Recipe, {**dataclasses.asdict(base), **given}, where="recipe")
    for key in ("model", "calibration"):
        if not getattr(merged, key):
            remedy = "name it on the command line or in the recipe"
            if key == "calibration":
                remedy = "a certificate speaks only for text like its own, so say which: --calibration PATH"
            raise ConfigError(f"recipe.{key}", expected="a value", found="nothing", remedy=remedy)
    return merged
