"""The verb `spectral report`."""

from __future__ import annotations

from typing import Any

import click

from spectral_convert.options import json_option, show


@click.command()
@click.argument("bundle")
@click.option("--out", default="report.html", show_default=True, type=click.Path(), help="The page.")
@click.option("--text", help="File or folder whose tokens are shown in the room; each .txt is a domain.")
@click.option("--base", help="Where the base model lies now, when not where the bundle says.")
@click.option(
    "--evidence",
    multiple=True,
    type=click.Path(),
    help="JSON of evaluate, bench or analyse. May be repeated.",
)
@json_option
def report(bundle: str, as_json: bool, **settings: Any) -> None:
    """Write one page about BUNDLE: verdict, quality, plots and the room in 3-D."""
    from spectral_convert.report.write import write_report

    record = write_report(bundle, **settings)
    lines = [*record["verdict"], f"report written to {record['path']} ({record['bytes'] / 1e6:.1f} MB)"]
    show(record, as_json, lambda out: [out.print(line, markup=False) for line in lines])
