"""The pages do what they say: every snippet of README and docs runs, every table and figure is that of its evidence.

A page's blocks run in their order, in one folder that has `recipes/` and `my-bundle`. Of a `sh` block the lines run that call
`spectral`; of `python` blocks all. `<!-- not run: REASON -->` before a block leaves it out. Token counts are capped, for speed.
"""

from __future__ import annotations

import importlib.util
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from spectral_convert.cli import spectral
from spectral_convert.convert import convert_checkpoint

ROOT = Path(__file__).parents[2]
PAGES = [page for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))) if page.is_file()]
BLOCK = re.compile(r"(<!-- not run: (?P<reason>.+?) -->\s*)?```(?P<kind>\w+)\n(?P<code>.*?)```", re.DOTALL)
CAPS = {"--tokens": 6000, "--max-tokens": 800, "--permutations": 3, "--repeats": 2, "--max-new-tokens": 6}


def blocks(page: Path) -> Iterator[tuple[str, str]]:
    for match in BLOCK.finditer(page.read_text(encoding="utf-8")):
        if match["reason"] is None:
            yield match["kind"], match["code"]


def commands(code: str) -> Iterator[list[str]]:
    for line in code.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if words and words[0] in {"spectral", "spectral-convert"}:
            verb = ["convert"] if words[0] == "spectral-convert" else []
            yield capped([*verb, *words[1:]])


def capped(words: list[str]) -> list[str]:
    for place, word in enumerate(words[:-1]):
        if word in CAPS:
            words[place + 1] = str(min(int(words[place + 1]), CAPS[word]))
    return words


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("snippets") / "my-bundle"
    settings: dict[str, Any] = {"tokens": 6000, "sequence_length": 128, "alpha": 0.05}
    convert_checkpoint(recipe=ROOT / "recipes" / "demo" / "demo.yaml", out=out, **settings)
    return out


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_snippets_run(page: Path, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    if "--out my-bundle" not in page.read_text(encoding="utf-8"):
        shutil.copytree(bundle, tmp_path / "my-bundle")
    names: dict[str, Any] = {}
    for kind, code in blocks(page):
        if kind == "python":
            exec(compile(code, f"{page.name} snippet", "exec"), names)
        elif kind in {"sh", "bash", "console"}:
            for words in commands(code):
                spectral.main(args=words, prog_name="spectral", standalone_mode=False)


def test_the_page_of_a_command_is_capped() -> None:
    found = list(
        commands("spectral-convert x --tokens 120000 \\\n  --out y  # words\nmake demo\nspectral inspect y")
    )
    assert found == [["convert", "x", "--tokens", "6000", "--out", "y"], ["inspect", "y"]]


def tables() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_tables", ROOT / "docs" / "tables.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_tables_are_those_of_their_evidence(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert tables().filled(text) == text, "run python docs/tables.py"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_and_evidence_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
        found = [page.parent / target, page.parent / f"{target}.md"]
        assert any(path.exists() for path in found), target
    for name in re.findall(r"<!-- evidence: ([\w.-]+) -->", text):
        assert (ROOT / "tests" / "benchmarks" / "evidence" / f"{name}.json").is_file(), name
