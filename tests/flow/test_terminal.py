"""The terminal: a help that is a map, --json everywhere, no colour and no progress bars in a pipe, completion."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from spectral_convert.cli import spectral
from spectral_convert.verb_map import MAP, SECTIONS

ROOT = Path(__file__).parents[2]


def leaves(command: click.Command, name: str) -> Iterator[tuple[str, click.Command]]:
    if isinstance(command, click.Group):
        for child in command.commands:
            yield from leaves(command.commands[child], f"{name} {child}")
    else:
        yield name, command


LEAVES = dict(leaves(spectral, "spectral"))


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from spectral_convert.cli import main; main()", *arguments]
    given = {**os.environ, "HF_HUB_OFFLINE": "1", **environment}
    return subprocess.run(command, capture_output=True, text=True, timeout=200, env=given, check=False)


def test_help_is_a_map_of_eighty_columns() -> None:
    shown = run("--help").stdout
    assert max(map(len, shown.splitlines())) <= 80
    places = [shown.index(f"{title}:") for title in SECTIONS]
    assert places == sorted(places)
    assert "More:" not in shown, "give the new verb its place in verb_map.py"
    for name in spectral.commands:
        assert f"  {name}" in shown
        assert MAP[name] in shown


@pytest.mark.parametrize("name", LEAVES)
def test_every_verb_has_json_and_a_help_of_eighty_columns(name: str) -> None:
    command = LEAVES[name]
    assert any("--json" in option.opts for option in command.params), name
    with click.Context(command, info_name=name, max_content_width=80, terminal_width=80) as context:
        shown = command.get_help(context)
    assert max(map(len, shown.splitlines())) <= 80
    assert command.help


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(shell: str) -> None:
    done = run(_SPECTRAL_COMPLETE=f"{shell}_source")
    assert "spectral" in done.stdout, done.stderr


def test_completion_knows_the_verbs() -> None:
    done = run(_SPECTRAL_COMPLETE="bash_complete", COMP_WORDS="spectral ana", COMP_CWORD="1")
    assert done.stdout.strip() == "plain,analyse"


@pytest.mark.parametrize("environment", [{}, {"NO_COLOR": "1", "FORCE_COLOR": ""}])
def test_a_pipe_gets_plain_text_and_no_bars(environment: dict[str, str]) -> None:
    checkpoint, text = ROOT / "recipes/demo/checkpoint", ROOT / "runtime/FORMAT.md"
    arguments = [
        "--text",
        str(text),
        "--max-tokens",
        "300",
        "--sequence-length",
        "100",
        "--permutations",
        "1",
    ]
    done = run("analyse", "experts", str(checkpoint), *arguments, **environment)
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout + done.stderr
    assert "observe routers" not in done.stderr
    assert "%|" not in done.stderr
    assert max(len(line) for line in done.stdout.splitlines() if "mlp.gate  " in line) <= 80


def test_errors_are_one_line() -> None:
    done = run("analyse", "experts", "no-such-folder-anywhere/x/y", "--text", "nothing.txt")
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert done.stderr.startswith("spectral: ")
