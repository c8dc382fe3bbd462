"""Strict parsing: every wrong key and type is named by its path, and the chosen error class is kept."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from spectral_runtime.errors import BundleError, ConfigError
from spectral_runtime.gate import GateRule
from spectral_runtime.strict import parse


@dataclass(frozen=True, kw_only=True)
class Inner:
    size: int
    share: float = 0.5


@dataclass(frozen=True, kw_only=True)
class Outer:
    name: str
    kind: Literal["round", "square"] = "round"
    inner: Inner | None = None
    parts: tuple[Inner, ...] = ()
    named: dict[str, Inner] = field(default_factory=dict)
    both: int | str = 0
    flag: bool = False
    anything: dict[str, Any] = field(default_factory=dict)


def test_parses_nested_values() -> None:
    data = {
        "name": "n",
        "kind": "square",
        "inner": {"size": 1, "share": 2},
        "parts": [{"size": 2}],
        "named": {"a": {"size": 3}},
        "both": "text",
        "flag": True,
        "anything": {"x": [1, None]},
    }
    expected = Outer(
        name="n",
        kind="square",
        inner=Inner(size=1, share=2.0),
        parts=(Inner(size=2),),
        named={"a": Inner(size=3)},
        both="text",
        flag=True,
        anything={"x": [1, None]},
    )
    assert parse(Outer, data, where="file") == expected


def test_optional_may_be_null() -> None:
    assert parse(Outer, {"name": "n", "inner": None}, where="file").inner is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"nmae": 1},
            r"file\.nmae: expected a known key, found 'nmae' — did you mean 'name'\? legal keys: name, ",
        ),
        ({"qqqq": 1}, r"file\.qqqq: expected a known key, found 'qqqq' — legal keys: name, "),
        ({"name": 3}, r"file\.name: expected str, found int 3"),
        ({"kind": "oval"}, r"file\.kind: expected one of round, square, found 'oval'"),
        ({"inner": 1}, r"file\.inner: expected a mapping, found int"),
        ({"inner": {}}, r"file\.inner\.size: expected this key, found nothing"),
        ({"inner": {"size": 1.0}}, r"file\.inner\.size: expected int, found float 1\.0"),
        ({"inner": {"size": True}}, r"file\.inner\.size: expected int, found bool True"),
        ({"inner": {"size": 1, "share": "half"}}, r"file\.inner\.share: expected float, found str 'half'"),
        ({"inner": {"size": 1, "share": 10**400}}, r"share: expected a number within the range of float"),
        ({"parts": {"size": 1}}, r"file\.parts: expected a list, found dict"),
        ({"parts": [{"size": 1}, {"sise": 1}]}, r"file\.parts\[1\]\.sise: .*did you mean 'size'"),
        ({"named": []}, r"file\.named: expected a mapping, found list"),
        ({"named": {"a": {"size": None}}}, r"file\.named\.a\.size: expected int, found NoneType None"),
        ({"both": 0.5}, r"file\.both: expected str, found float 0\.5"),
        ({"flag": 1}, r"file\.flag: expected bool, found int 1"),
        ({"anything": 1}, r"file\.anything: expected a mapping, found int"),
    ],
)
@pytest.mark.parametrize("error", [ConfigError, BundleError])
def test_wrong_input_is_named(change: dict[str, Any], message: str, error: type[ConfigError]) -> None:
    with pytest.raises(error, match=message):
        parse(Outer, {"name": "n", **change}, where="file", error=error)


@pytest.mark.parametrize("data", [None, [], "text", 3])
def test_only_mappings(data: object) -> None:
    with pytest.raises(ConfigError, match="file: expected a mapping, found"):
        parse(Outer, data, where="file")


def test_long_values_are_shortened() -> None:
    with pytest.raises(ConfigError, match=r"found str 'xxx+\.\.\.$") as caught:
        parse(Outer, {"name": "n", "inner": {"size": "x" * 10_000}}, where="file")
    assert len(str(caught.value)) < 200


def test_control_characters_do_not_reach_the_terminal() -> None:
    with pytest.raises(ConfigError, match="known key") as caught:
        parse(Outer, {"name": "n", "\x1b[2J": 1}, where="file")
    assert str(caught.value).isprintable()


def test_rules_across_keys_keep_the_error_class() -> None:
    with pytest.raises(BundleError, match=r"file: rule\.top_k: expected 1 to 4 \(the experts\), found 5"):
        parse(GateRule, {"experts": 4, "top_k": 5}, where="file", error=BundleError)
