"""The verbs about checkpoints and the Hub; the command line adds them to its group."""

from __future__ import annotations

from typing import Any

import click

from spectral_convert.options import json_option, show


@click.command("families")
@json_option
def families_command(as_json: bool) -> None:
    """List the architectures of the installed transformers that declare routers: rule, or why not."""
    from spectral_convert.families.table import as_records, families_lines, list_families

    records = as_records(list_families())
    show({"families": records}, as_json, lambda out: out.print(families_lines(records), markup=False))


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
