"""What the verbs of the command line share: options, and how a record is shown."""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Callable
from typing import Any, Literal, get_args, get_origin, get_type_hints

import click

MODES = click.Choice(["exact", "prefilter", "geometric", "dense"])
Command = Callable[..., Any]


def setting_options(kind: Any, *without: str) -> Callable[[Command], Command]:
    """One flag per field of a settings class, but those named; a flag not given keeps the default."""
    hints = get_type_hints(kind)

    def add(command: Command) -> Command:
        for field in reversed(dataclasses.fields(kind)):
            if field.name in without:
                continue
            text, shape = field.metadata["help"], _click_type(hints[field.name])
            shown = "" if field.default in (None, False) else f"  [default: {field.default}]"
            option = {"is_flag": True, "default": None} if shape is bool else {"type": shape, "default": None}
            flag = "--" + field.name.replace("_", "-")
            if field.default is True:
                flag, shown = f"{flag}/--no-{flag[2:]}", "  [default: on]"
            command = click.option(flag, help=text[0].upper() + text[1:] + "." + shown, **option)(command)
        return command

    return add


def _click_type(hint: Any) -> Any:
    if get_origin(hint) in (types.UnionType, typing.Union):  # Literal | None is the latter
        hint = next(arg for arg in get_args(hint) if arg is not type(None))
    return click.Choice(list(get_args(hint))) if get_origin(hint) is Literal else hint


def json_option(command: Command) -> Command:
    """`--json`: one JSON object on standard output, nothing else."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")(
        command
    )


def model_options(command: Command) -> Command:
    """The options of every verb that loads a base model and a bundle."""
    options = (
        click.option("--base", help="Where the base model lies now, when not where the bundle says."),
        click.option("--mode", type=MODES, help="One mode for all layers."),
        click.option("--candidates", type=int, help="C of prefilter, for all layers."),
    )
    for option in reversed(options):
        command = option(command)
    return command


def torch_options(command: Command) -> Command:
    """The dtype and device of every verb that runs a model."""
    dtype = click.option("--dtype", default="float32", show_default=True, help="torch dtype.")
    device = click.option("--device", default="cpu", show_default=True, help="torch device.")
    return dtype(device(command))


def hub_options(command: Command) -> Command:
    """Where checkpoints come from, for every verb that may download one."""
    options = (
        click.option("--token", help="Hub token.  [default: the one of the login]"),
        click.option("--cache-dir", type=click.Path(), help="Where the Hub keeps downloads."),
        click.option(
            "--trust-remote-code",
            is_flag=True,
            help="Run Python code that the checkpoint brings: read it first.",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


def size_options(command: Command) -> Command:
    """How a conversion deals with models of any size."""
    options = (
        click.option(
            "--load",
            type=click.Choice(["auto", "stream", "full"]),
            default="auto",
            show_default=True,
            help="stream: one decoder layer in memory at a time; full: the whole model.",
        ),
        click.option(
            "--memory", type=float, help="GiB for activations before they spill.  [default: a quarter]"
        ),
        click.option(
            "--work", type=click.Path(), help="Keep finished pieces here.  [default: OUT.work, until the end]"
        ),
        click.option(
            "--engine",
            type=click.Choice(["local", "ray"]),
            default="local",
            show_default=True,
            help="ray: fit layers as tasks of a Ray cluster; the same result.",
        ),
        click.option("--ray-address", help="Head of the cluster.  [default: RAY_ADDRESS, or this machine's]"),
    )
    for option in reversed(options):
        command = option(command)
    return command


def show(record: dict[str, Any], as_json: bool, render: Callable[[Any], Any]) -> None:
    """Prints a record as JSON, or as `render` draws it on the console."""
    from spectral_convert.terminal import console

    if as_json:
        click.echo(json.dumps(record, indent=1, allow_nan=False))
    else:
        render(console())
