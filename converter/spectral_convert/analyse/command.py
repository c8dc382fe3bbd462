"""The verbs `spectral analyse experts` and `spectral analyse polysemy`."""

from __future__ import annotations

from typing import Any

import click

from spectral_convert.options import json_option, show, torch_options


@click.group()
def analyse() -> None:
    """Study experts and routers: what they serve, which senses they tell apart."""


@analyse.command("experts")
@click.argument("model")
@click.option(
    "--text", multiple=True, help="Text file, or folder of .txt; every file is a domain. May be repeated."
)
@click.option(
    "--tagged", help="Zip of the Brown corpus as NLTK distributes it: gold tags, genres as domains."
)
@click.option("--revision", help="Commit or branch of the checkpoint on the Hub.")
@click.option(
    "--max-tokens", type=click.IntRange(2), default=200_000, show_default=True, help="Shared by the domains."
)
@click.option(
    "--sequence-length", type=click.IntRange(2), default=1024, show_default=True, help="Tokens per window."
)
@click.option("--permutations", type=click.IntRange(0), default=50, show_default=True, help="For the null.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of permutations and bootstraps.")
@click.option("--evidence", type=click.Path(), help="Write the record to this JSON file too.")
@torch_options
@json_option
def experts_command(model: str, as_json: bool, evidence: str | None, **settings: Any) -> None:
    """What the experts of MODEL serve, layer by layer, with intervals."""
    from spectral_convert.analyse.experts import analyse_experts
    from spectral_convert.analyse.shown import experts_table
    from spectral_convert.evidence import write_evidence

    record = analyse_experts(model, **settings)
    if evidence:
        write_evidence(evidence, "experts", record)
    show(record, as_json, lambda out: _print(out, [experts_table(record)], record["conclusions"]))


@analyse.command("polysemy")
@click.argument("source", metavar="MODEL_OR_BUNDLE")
@click.option("--base", help="Where a bundle's base model lies now, when not where the bundle says.")
@click.option("--data", type=click.Path(), help="JSONL in the layout of the built-in sentences.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the bootstrap over lemmas.")
@click.option("--evidence", type=click.Path(), help="Write the record to this JSON file too.")
@torch_options
@json_option
def polysemy_command(source: str, as_json: bool, evidence: str | None, **settings: Any) -> None:
    """Whether routing tells the senses of a word apart: gate and, for a bundle, its routers."""
    from spectral_convert.analyse.polysemy import analyse_polysemy
    from spectral_convert.analyse.shown import polysemy_table
    from spectral_convert.evidence import write_evidence

    record = analyse_polysemy(source, **settings)
    if evidence:
        write_evidence(evidence, "polysemy", record)
    show(record, as_json, lambda out: _print(out, [polysemy_table(record)], record["conclusions"]))


def _print(out: Any, tables: list[Any], lines: list[str]) -> None:
    for drawn in tables:
        out.print(drawn)
    for line in lines:
        out.print(line, markup=False)
