"""Proportion: short functions, short files, few positional parameters, names that say something."""

from __future__ import annotations

import ast
import re
import statistics
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PYTHON = sorted(path for top in ("converter", "runtime") for path in (ROOT / top).rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
NATIVE_LINES = {".h": 320, ".cuh": 320, ".inl": 320, ".cpp": 500, ".cu": 500}
NATIVE = sorted(p for p in (ROOT / "plugins").rglob("*") if p.suffix in NATIVE_LINES)
FORBIDDEN = re.compile(r"(^|_)(utils?|helpers?|common|manager|misc|final|old|new|tmp|v\d+)(_|$)")

Function = ast.FunctionDef | ast.AsyncFunctionDef


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def lines_of(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


def functions_of(path: Path) -> Iterator[Function]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, Function):
            yield node


def length_of(function: Function) -> int:
    return (function.end_lineno or function.lineno) - function.lineno + 1


def positional_of(function: Function) -> int:
    names = [a.arg for a in (*function.args.posonlyargs, *function.args.args)]
    return len(names) - (names[:1] in (["self"], ["cls"]))


@pytest.mark.parametrize("path", [*PYTHON, *TESTS], ids=name_of)
def test_python_file(path: Path) -> None:
    assert len(lines_of(path)) <= 400
    assert not FORBIDDEN.search(path.stem), path.name
    assert not path.read_text(encoding="utf-8").strip() or ast.get_docstring(
        ast.parse(path.read_text(encoding="utf-8"))
    )


@pytest.mark.parametrize("path", PYTHON, ids=name_of)
def test_python_functions(path: Path) -> None:
    for function in functions_of(path):
        assert length_of(function) <= 60, f"{function.name} has {length_of(function)} lines"
        assert positional_of(function) <= 5, f"{function.name} takes {positional_of(function)} by position"


def test_median_python_function() -> None:
    assert statistics.median(length_of(function) for path in PYTHON for function in functions_of(path)) <= 12


@pytest.mark.parametrize("path", NATIVE, ids=name_of)
def test_native_file(path: Path) -> None:
    lines = lines_of(path)
    assert len(lines) <= NATIVE_LINES[path.suffix]
    assert lines[0].startswith("//"), "the first line says what the file is"
    assert not FORBIDDEN.search(path.stem), path.name


@pytest.mark.parametrize("path", NATIVE, ids=name_of)
def test_native_functions(path: Path) -> None:
    for start, length in native_blocks(lines_of(path)):
        assert length <= 80, f"the function at line {start} has {length} lines"


def native_blocks(lines: list[str]) -> Iterator[tuple[int, int]]:
    """First line and length of every function body, by its indentation in clang-formatted code."""
    for at, line in enumerate(lines):
        opens = re.search(r"\)\s*(const|noexcept|override|final|mutable|->\s*[\w:<>*& ]+|\s)*\{\s*$", line)
        if not opens or re.match(r"\s*(if|for|while|switch|else|\}|catch|do)\b", line):
            continue
        indent = len(line) - len(line.lstrip())
        closes = (i for i in range(at + 1, len(lines)) if re.match(rf"\s{{0,{indent}}}\}}", lines[i]))
        end = next(closes, len(lines))
        yield at + 1, end - at + 1


@pytest.mark.parametrize("top", ["converter", "runtime", "plugins", "recipes", "tests"])
def test_folder_names(top: str) -> None:
    for path in (ROOT / top).rglob("*"):
        assert not path.is_dir() or not FORBIDDEN.search(path.name), path
