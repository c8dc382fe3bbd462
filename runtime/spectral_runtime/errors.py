"""The closed vocabulary of errors: every message says where, what was expected, what was found, what to do."""

from __future__ import annotations

import functools
from typing import Any


class SpectralError(Exception):
    """Base of all errors this project raises on purpose.

    Args:
        where: the file, key, layer or call that failed.
        expected: what a valid input would have had there.
        found: what was there instead.
        remedy: what the reader can do now.
    """

    def __init__(self, where: str, *, expected: str = "", found: str = "", remedy: str = "") -> None:
        self.where, self.expected, self.found, self.remedy = where, expected, found, remedy
        parts = [f"expected {expected}" if expected else "", f"found {found}" if found else ""]
        detail = ", ".join(part for part in parts if part)
        message = f"{where}: {detail}" if detail else where
        super().__init__(f"{message} — {remedy}" if remedy else message)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles by its parts, so that an error of another process keeps them."""
        parts = {"expected": self.expected, "found": self.found, "remedy": self.remedy}
        return functools.partial(type(self), self.where, **parts), ()


class UserError(SpectralError):
    """The input is at fault; the command line prints it as one line and exits with status 2."""


class ConfigError(UserError):
    """A recipe, flag or keyword is wrong."""


class BundleError(UserError):
    """A bundle cannot be trusted: malformed, truncated, newer, or made for another base model."""


class ModelError(UserError):
    """The checkpoint cannot be converted or attached to: not a MoE, unknown rule, missing shard, NaN."""


class TextError(UserError):
    """The text is not enough, not readable, or not usable for what was asked of it."""


class BackendUnavailable(UserError):
    """A named back-end cannot run on this machine; the message carries the reason."""


class InternalError(SpectralError):
    """Our bug: an invariant of this project does not hold. Please report it."""
