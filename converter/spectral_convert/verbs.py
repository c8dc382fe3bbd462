"""The verbs about checkpoints and the Hub; the command line adds them to its group."""

from __future__ import annotations

import click

from spectral_convert.options import json_option, show


@click.command("families")
@json_option
def families_command(as_json: bool) -> None:
    """List the architectures of the installed transformers that declare routers: rule, or why not."""
    from spectral_convert.families.table import as_records, families_lines, list_families

    records = as_records(list_families())
    show({"families": records}, as_json, lambda out: out.print(families_lines(records), markup=False))
