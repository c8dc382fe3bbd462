"""JSON as the format allows it: UTF-8, no duplicate keys, no NaN or infinity, bounded nesting."""

from __future__ import annotations

import json
from typing import Any

from spectral_runtime.errors import BundleError


def parse_json(data: bytes, where: str) -> Any:
    """The value in `data`; anything that two readers could understand differently is a BundleError."""
    try:
        text = data.decode("utf-8")
        value = json.loads(
            text, object_pairs_hook=_unique, parse_constant=_refuse_constant, parse_float=_finite
        )
        if "\\ud" in text.lower():  # an unpaired surrogate can be neither printed nor hashed as UTF-8
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except BundleError as fault:
        raise BundleError(f"{where}: {fault}") from None
    except RecursionError:
        raise BundleError(
            where, expected="JSON of ordinary depth", found="too many nested brackets"
        ) from None
    except ValueError as fault:
        raise BundleError(where, expected="UTF-8 JSON", found=_shortened(str(fault))) from None
    return value


def format_json(value: object) -> bytes:
    """The one spelling this project writes: sorted keys, two spaces, UTF-8, a final newline."""
    text = json.dumps(value, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8") + b"\n"


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for name, value in pairs:
        if name in result:
            raise BundleError("JSON object", expected="every key once", found=f"{ascii(name)[:80]} twice")
        result[name] = value
    return result


def _refuse_constant(name: str) -> Any:
    raise BundleError("JSON number", expected="a finite number", found=name)


def _finite(text: str) -> float:
    value = float(text)
    if value - value != 0.0:
        raise BundleError("JSON number", expected="a finite number", found=_shortened(text))
    return value


def _shortened(text: str) -> str:
    return text if len(text) <= 120 else f"{text[:117]}..."
