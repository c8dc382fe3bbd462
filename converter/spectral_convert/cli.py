"""The command line: `spectral VERB` and `spectral-convert`; every body calls one public function."""

from __future__ import annotations

import dataclasses
import logging
import signal
import sys
from typing import Any, NoReturn

import click

import spectral_runtime
from spectral_convert.analyse.command import analyse
from spectral_convert.export.commands import build_engine_command, export_command
from spectral_convert.options import (
    Command,
    hub_options,
    json_option,
    model_options,
    setting_options,
    show,
    size_options,
    torch_options,
)
from spectral_convert.recipe import Recipe
from spectral_convert.report.command import report
from spectral_convert.verb_map import VerbMap
from spectral_convert.verbs import bench_route_command, families_command, heal_command, push_command
from spectral_runtime.errors import InternalError, UserError

HELP = """Turn Mixture-of-Experts checkpoints into measured geometric routers, and run them.

Every verb takes --json and --help. Completion for your shell (or zsh_source, fish_source):

\b
  eval "$(_SPECTRAL_COMPLETE=bash_source spectral)"
"""


@click.group(
    cls=VerbMap, help=HELP, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80}
)
@click.version_option(spectral_runtime.__version__, prog_name="spectral")
@click.option("-v", "--verbose", is_flag=True, help="Log what is being done.")
def spectral(verbose: bool) -> None:
    """The group of all verbs."""
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING, format="%(levelname)s %(message)s"
    )


def recipe_options(command: Command) -> Command:
    """One flag per field of `Recipe`; a flag not given leaves the recipe's value."""
    return setting_options(Recipe, "model")(command)


@spectral.command("convert")
@click.argument("model", default="")
@click.option("--out", required=True, help="Folder of the bundle.")
@click.option("--recipe", type=click.Path(), help="YAML recipe; flags go over it.")
@click.option(
    "--overwrite", is_flag=True, help="Replace the bundle that is there, once the new one is complete."
)
@click.option("--dry-run", is_flag=True, help="Only plan: what would be read, needed and refused.")
@hub_options
@size_options
@recipe_options
@json_option
def convert_command(as_json: bool, dry_run: bool, **settings: Any) -> None:
    """Convert MODEL, a Hub id or a folder, into a bundle."""
    if dry_run:
        for name in ("overwrite", "load", "memory", "work", "engine", "ray_address"):
            settings.pop(name)
        _show_plan(as_json, settings)
        return
    from spectral_convert.convert import convert_checkpoint
    from spectral_convert.inspect import describe

    conversion = convert_checkpoint(settings.pop("model"), **settings)
    record = conversion.evaluation.as_json()
    facts = describe(conversion.bundle)
    facts |= {"evaluation": record, "budget": conversion.budget}
    show(facts, as_json, lambda out: _print_conversion(out, facts, record))


@spectral.command("plan")
@click.argument("model", default="")
@click.option("--out", help="Where the bundle would go.")
@click.option("--recipe", type=click.Path(), help="YAML recipe; flags go over it.")
@hub_options
@recipe_options
@json_option
def plan_command(as_json: bool, **settings: Any) -> None:
    """Tell what converting MODEL would read, need and refuse; no weight is read."""
    _show_plan(as_json, settings)


def _show_plan(as_json: bool, settings: dict[str, Any]) -> None:
    from spectral_convert.plan import plan_conversion, plan_lines

    record = plan_conversion(settings.pop("model"), **settings)
    show(record, as_json, lambda out: out.print(plan_lines(record), markup=False))


def _print_conversion(out: Any, facts: dict[str, Any], record: dict[str, Any]) -> None:
    from spectral_convert.terminal import budget_lines, budget_table, bundle_table, perplexity_line

    out.print(bundle_table(facts))
    if facts["budget"] is not None:
        out.print(budget_table(facts["budget"]))
        out.print("\n".join(budget_lines(facts["budget"], record)), markup=False)
    out.print(f"evaluate split: {perplexity_line(record)}")
    out.print(f"bundle written to {facts['path']}")


@spectral.command("inspect")
@click.argument("bundle")
@json_option
def inspect_command(bundle: str, as_json: bool) -> None:
    """Show what BUNDLE holds, per layer."""
    from spectral_convert.inspect import inspect_bundle
    from spectral_convert.terminal import bundle_table

    facts = inspect_bundle(bundle)
    show(facts, as_json, lambda out: out.print(bundle_table(facts)))


@spectral.command("generate")
@click.argument("bundle")
@click.option("--prompt", required=True, help="Text to continue.")
@model_options
@click.option("--max-new-tokens", type=int, default=64, show_default=True, help="Length of the continuation.")
@torch_options
@json_option
def generate_command(bundle: str, as_json: bool, **settings: Any) -> None:
    """Continue a prompt with and without the geometric routers of BUNDLE."""
    from spectral_convert.generate import generate_text

    result = generate_text(bundle, **settings)
    lines = (f"untouched: {result.prompt}{result.base}", f"converted: {result.prompt}{result.converted}")
    same = f"first {result.same_tokens} greedy tokens agree"
    show(
        dataclasses.asdict(result), as_json, lambda out: [out.print(x, markup=False) for x in (*lines, same)]
    )


@spectral.command("evaluate")
@click.argument("bundle")
@click.option("--text", help="UTF-8 file or folder of .txt; documents separated by a form feed.")
@model_options
@click.option(
    "--against", help="Model to compare with.  [default: the untouched base, of a healed model its original]"
)
@click.option("--max-tokens", type=click.IntRange(2), help="Stop after this many tokens.")
@click.option(
    "--sequence-length", type=click.IntRange(2), default=1024, show_default=True, help="Tokens per window."
)
@click.option("--stride", type=int, help="Tokens from window to window.  [default: no overlap]")
@click.option("--pairs", help="Minimal pairs: a .jsonl with sentence_good and sentence_bad, or a folder.")
@click.option("--max-pairs", type=click.IntRange(1), help="Pairs of each file.")
@click.option("--tasks", default="", help="lm-eval tasks, separated by commas; needs lm-eval.")
@click.option("--task-limit", type=click.IntRange(1), help="Examples a task.")
@click.option("--task-folder", help="Folder of further lm-eval task definitions.")
@click.option("--long-context", is_flag=True, help="Perplexity by position, pass key, copying.")
@click.option("--max-length", type=click.IntRange(128), help="Longest context.  [default: the model's limit]")
@click.option("--trials", type=click.IntRange(1), default=8, show_default=True, help="Probes a length.")
@torch_options
@click.option("--seed", type=int, default=0, show_default=True, help="Of bootstraps and probes.")
@click.option("--evidence", type=click.Path(), help="Write the record to this JSON file too.")
@json_option
def evaluate_command(bundle: str, as_json: bool, tasks: str, **settings: Any) -> None:
    """Compare BUNDLE with the untouched model: text, minimal pairs, tasks, long context."""
    from spectral_convert.downstream.shown import downstream_tables
    from spectral_convert.evaluate import evaluate_bundle
    from spectral_convert.terminal import evaluation_table, perplexity_line

    names = tuple(name.strip() for name in tasks.split(",") if name.strip())
    record = evaluate_bundle(bundle, tasks=names, **settings)
    shown = [evaluation_table(record), perplexity_line(record)] if "ppl" in record else []
    show(record, as_json, lambda out: [out.print(x) for x in (*shown, *downstream_tables(record))])


@spectral.command("compare")
@click.argument("first", type=click.Path())
@click.argument("second", type=click.Path())
@json_option
def compare_command(first: str, second: str, as_json: bool) -> None:
    """Compare two evidence files of `evaluate`; refused when their protocols differ."""
    from spectral_convert.compare import compare_evidence
    from spectral_convert.terminal import comparison_table

    record = compare_evidence(first, second)
    show(record, as_json, lambda out: out.print(comparison_table(record)))


@spectral.command("bench")
@click.argument("bundle")
@click.option("--text", required=True, help="Text whose hidden states are routed.")
@model_options
@click.option(
    "--batches", type=int, multiple=True, default=(1, 32, 1024), show_default=True, help="Tokens per call."
)
@click.option("--repeats", type=click.IntRange(1), default=50, show_default=True, help="Timed calls.")
@click.option(
    "--threads", type=click.IntRange(1), default=1, show_default=True, help="Threads of both sides."
)
@json_option
def bench_command(bundle: str, as_json: bool, **settings: Any) -> None:
    """Time the routing of BUNDLE's layers against their gates, hidden state to experts."""
    from spectral_convert.bench import bench_bundle
    from spectral_convert.terminal import bench_table

    record = bench_bundle(bundle, **settings)
    show(record, as_json, lambda out: out.print(bench_table(record)))


spectral.add_command(analyse)
spectral.add_command(report)
spectral.add_command(export_command)
spectral.add_command(build_engine_command)
spectral.add_command(families_command)
spectral.add_command(bench_route_command)
spectral.add_command(push_command)
spectral.add_command(heal_command)


def run(command: click.Command, arguments: list[str] | None = None) -> NoReturn:
    """Runs a command; a user's error is one line and status 2, an interruption 130 or 143."""
    signal.signal(signal.SIGTERM, _terminate)
    _quiet_libraries()
    try:
        command.main(args=arguments, prog_name=command.name, standalone_mode=False)
        sys.exit(0)
    except click.exceptions.Exit as done:
        sys.exit(done.exit_code)
    except click.ClickException as error:
        _fail(error.format_message(), 2)
    except UserError as error:
        _fail(str(error), 2)
    except (KeyboardInterrupt, click.Abort):
        _fail("interrupted; nothing half-written was left", 130)
    except InternalError as error:
        _fail(f"internal error, please report it: {error}", 1)


def _fail(message: str, status: int) -> NoReturn:
    click.echo("spectral: " + " ".join(message.split()), err=True)
    sys.exit(status)


def _terminate(*_: Any) -> NoReturn:
    click.echo("spectral: terminated; nothing half-written was left", err=True)
    sys.exit(143)


def _quiet_libraries() -> None:
    """Transformers' own bars and notices would interleave with ours."""
    import os

    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


def main() -> NoReturn:
    """Entry point of `spectral`."""
    run(spectral)


def main_convert() -> NoReturn:
    """Entry point of `spectral-convert`."""
    command = spectral.commands["convert"]
    command.name = "spectral-convert"
    run(command)
