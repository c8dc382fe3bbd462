"""Turns mappings into frozen dataclasses; unknown, missing, mistyped keys are errors with a dotted path."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from spectral_runtime.errors import ConfigError, UserError

T = TypeVar("T")


def parse(cls: type[T], data: object, *, where: str, error: type[UserError] = ConfigError) -> T:
    """Builds the dataclass `cls` from a mapping, checking every key and type.

    Args:
        cls: a dataclass whose annotations are scalars, Literals, tuples, optionals or dataclasses.
        data: the mapping, for example from JSON or YAML.
        where: file and dotted path, the start of every message.
        error: the class to raise.
    """
    if not isinstance(data, Mapping):
        raise error(where, expected="a mapping", found=type(data).__name__)
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    _refuse_unknown(data, fields, where, error)
    _refuse_missing(data, fields, where, error)
    hints = get_type_hints(cls)
    values = {key: _convert(hints[key], value, f"{where}.{key}", error) for key, value in data.items()}
    try:
        return cls(**values)
    except UserError as fault:  # a rule across keys, checked by the class itself
        raise error(f"{where}: {fault}") from fault


def _refuse_unknown(
    data: Mapping[Any, Any], fields: Mapping[str, Any], where: str, error: type[UserError]
) -> None:
    for key in data:
        if key not in fields:
            close = get_close_matches(str(key)[:80], fields, n=1)
            hint = f"did you mean '{close[0]}'? " if close else ""
            legal = ", ".join(fields)
            raise error(
                f"{where}.{_shown(key)[1:-1]}",
                expected="a known key",
                found=_shown(key),
                remedy=f"{hint}legal keys: {legal}",
            )


def _refuse_missing(
    data: Mapping[Any, Any], fields: Mapping[str, Any], where: str, error: type[UserError]
) -> None:
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in data:
            raise error(f"{where}.{name}", expected="this key", found="nothing")


def _convert(hint: Any, value: object, where: str, error: type[UserError]) -> Any:
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return _convert_union(args, value, where, error)
    if origin is Literal:
        return _convert_literal(args, value, where, error)
    if origin is tuple:
        return _convert_tuple(args, value, where, error)
    if origin is dict:
        return _convert_dict(args, value, where, error)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return parse(hint, value, where=where, error=error)
    return _convert_scalar(hint, value, where, error)


def _convert_union(args: tuple[Any, ...], value: object, where: str, error: type[UserError]) -> Any:
    if value is None and type(None) in args:
        return None
    choices = [arg for arg in args if arg is not type(None)]
    for choice in choices[:-1]:
        try:
            return _convert(choice, value, where, error)
        except error:
            continue
    return _convert(choices[-1], value, where, error)


def _convert_literal(args: tuple[Any, ...], value: object, where: str, error: type[UserError]) -> Any:
    if value not in args or isinstance(value, bool) != any(isinstance(arg, bool) for arg in args):
        raise error(where, expected="one of " + ", ".join(map(str, args)), found=_shown(value))
    return value


def _convert_tuple(args: tuple[Any, ...], value: object, where: str, error: type[UserError]) -> Any:
    if not isinstance(value, list | tuple):
        raise error(where, expected="a list", found=type(value).__name__)
    return tuple(_convert(args[0], item, f"{where}[{i}]", error) for i, item in enumerate(value))


def _convert_dict(args: tuple[Any, ...], value: object, where: str, error: type[UserError]) -> Any:
    if not isinstance(value, Mapping):
        raise error(where, expected="a mapping", found=type(value).__name__)
    return {str(key): _convert(args[1], item, f"{where}.{key}", error) for key, item in value.items()}


def _convert_scalar(hint: Any, value: object, where: str, error: type[UserError]) -> Any:
    if hint is Any or hint is object:
        return value
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return _widen(value, where, error)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise error(where, expected=hint.__name__, found=f"{type(value).__name__} {_shown(value)}")
    return value


def _widen(value: int, where: str, error: type[UserError]) -> float:
    try:
        return float(value)
    except OverflowError:
        raise error(where, expected="a number within the range of float", found="a larger one") from None


def _shown(value: object) -> str:
    text = ascii(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
