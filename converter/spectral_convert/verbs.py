"""The verbs about checkpoints and the Hub; the command line adds them to its group."""

from __future__ import annotations

from typing import Any

import click

from spectral_convert.heal.settings import HealSettings
from spectral_convert.options import json_option, setting_options, show


@click.command("families")
@json_option
def families_command(as_json: bool) -> None:
    """List the architectures of the installed transformers that declare routers: rule, or why not."""
    from spectral_convert.families.table import as_records, families_lines, list_families

    records = as_records(list_families())
    show({"families": records}, as_json, lambda out: out.print(families_lines(records), markup=False))


@click.command("heal")
@click.argument("bundle")
@click.option("--out", required=True, help="Folder of the healed bundle, or checkpoint with a bundle.")
@click.option("--base", help="Where the base model lies now, when not where the bundle says.")
@click.option("--overwrite", is_flag=True, help="Replace what is there, once the new one is complete.")
@click.option("--resume", is_flag=True, help="Continue from the checkpoint in the work folder.")
@click.option(
    "--work", type=click.Path(), help="Keep the checkpoint here.  [default: OUT.work, until the end]"
)
@setting_options(HealSettings)
@json_option
def heal_command(bundle: str, as_json: bool, **settings: Any) -> None:
    """Train BUNDLE's geometry, or the whole model, to predict like the untouched model."""
    from spectral_convert.healing import heal_bundle
    from spectral_convert.terminal import healing_lines

    healing = heal_bundle(bundle, **settings)
    record = {"path": str(healing.bundle.path), **healing.record}
    show(record, as_json, lambda out: out.print(healing_lines(record), markup=False))


@click.command("push")
@click.argument("bundle")
@click.argument("repo")
@click.option("--private", is_flag=True, help="Create the repository private.")
@click.option("--revision", help="Branch to commit to; created when absent.")
@click.option("--create-pr", is_flag=True, help="Open a pull request instead of committing.")
@click.option("--token", help="Hub token.  [default: the one of the login]")
@json_option
def push_command(bundle: str, repo: str, as_json: bool, **settings: Any) -> None:
    """Upload BUNDLE to the Hub as REPO (owner/name), with its model card."""
    from spectral_convert.push import push_bundle

    record = push_bundle(bundle, repo, **settings)
    show(record, as_json, lambda out: out.print(f"{record['files']} files at {record['url']}", markup=False))


@click.command("bench-route")
@click.option("--out", type=click.Path(), help="JSON file of the record; written after every size.")
@click.option("--page", type=click.Path(), help="Folder of a Markdown page with plots; needs --out.")
@click.option("--experts", type=int, multiple=True, help="E; may be repeated.  [default: 64 to 1048576]")
@click.option("--batches", type=int, multiple=True, help="B; may be repeated.  [default: 1 to 65536]")
@click.option("--levels", type=int, multiple=True, help="L; may be repeated.  [default: 1 and 4]")
@click.option(
    "--repeats", type=click.IntRange(1), default=50, show_default=True, help="Samples of each kind."
)
@click.option(
    "--budget", type=float, default=0.25, show_default=True, help="Seconds an arm may take per kind."
)
@click.option("--compiled", is_flag=True, help="Also time the gate under torch.compile.")
@click.option("--peers", type=click.Path(), help="Folder with operator libraries of other projects.")
@json_option
def bench_route_command(as_json: bool, page: str | None, **settings: Any) -> None:
    """Time routing on a GPU over planted gates: ours, dense gates, product keys, trees."""
    from spectral_convert.bench_route import bench_route
    from spectral_convert.route_page import write_page

    record = bench_route(**{name: value for name, value in settings.items() if value not in ((), None)})
    if page is not None and settings["out"] is not None:
        write_page(settings["out"], page)
    show(record, as_json, lambda out: out.print(f"{len(record['cells'])} sizes measured"))
