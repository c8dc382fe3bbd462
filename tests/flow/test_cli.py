"""The command line as a user meets it: tables, JSON, one-line errors, exit codes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from spectral_convert.convert import Conversion

TEXT = Path(__file__).parents[2] / "recipes" / "demo" / "books.txt"
KEYS = {
    "tokens",
    "ppl_base",
    "ppl",
    "delta_pct",
    "ci95",
    "recall",
    "kept_mass",
    "mean_candidates",
    "certified",
    "layers",
}


def spectral(*arguments: str, timeout: int = 120) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "NO_COLOR": "1"}
    command = [sys.executable, "-m", "spectral_convert", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=timeout, env=environment, check=False
    )


def test_evaluate_prints_the_promised_json(demo: Conversion) -> None:
    done = spectral(
        "evaluate",
        str(demo.bundle.path),
        "--text",
        str(TEXT),
        "--max-tokens",
        "2000",
        "--sequence-length",
        "128",
        "--json",
    )
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert set(record) >= KEYS
    assert set(record["layers"][0]) >= {"path", "recall", "kept_mass", "certified", "lost"}
    assert 1800 < record["tokens"] <= 2000
    assert len(record["layers"][0]["lost"]) == 32


def test_inspect_prints_a_table_of_eighty_columns(demo: Conversion) -> None:
    done = spectral("inspect", str(demo.bundle.path))
    assert done.returncode == 0, done.stderr
    rows = [line for line in done.stdout.splitlines() if "mlp.gate" in line]
    assert len(rows) == 4
    assert all(len(row) <= 80 for row in rows)
    assert "\x1b" not in done.stdout


def test_generate_shows_both(demo: Conversion) -> None:
    done = spectral(
        "generate", str(demo.bundle.path), "--prompt", "The old", "--max-new-tokens", "4", "--json"
    )
    record = json.loads(done.stdout)
    assert record["prompt"] == "The old"
    assert 0 <= record["same_tokens"] <= 4


def test_bench_times_and_shows_recall(demo: Conversion) -> None:
    done = spectral(
        "bench",
        str(demo.bundle.path),
        "--text",
        str(TEXT),
        "--batches",
        "1",
        "--batches",
        "64",
        "--repeats",
        "2",
        "--json",
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["rows"]
    assert {row["arm"] for row in rows} == {"gate", "prefilter torch", "candidates cpu"}
    assert all(row["median_us"] > 0 and 0 <= row["recall"] <= 1 for row in rows)
    assert all(row["recall"] > 0.5 for row in rows if row["batch"] == 64)  # of one token half may be lost


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("inspect", "nowhere/at/all"), "nowhere/at/all"),
        (("convert", "m", "--out", "x"), "recipe.calibration: expected a value"),
        (
            ("convert", "m", "--out", "x", "--levels", "0", "--calibration", "t"),
            "recipe.levels: expected at least 1",
        ),
        (("evaluate",), "Missing argument"),
    ],
)
def test_a_users_error_is_one_line_and_status_two(arguments: tuple[str, ...], message: str) -> None:
    done = spectral(*arguments)
    assert done.returncode == 2
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("spectral: ")
    assert message in lines[0]


def test_help_starts_without_torch() -> None:
    code = "import sys, spectral_convert.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
