"""The verbs `export` and `build-engine` of the command line."""

from __future__ import annotations

from typing import Any

import click

from spectral_convert.options import json_option, model_options, show

DTYPES = click.Choice(["float32", "float16", "bfloat16"])


@click.command("export")
@click.argument("bundle")
@click.option("--out", required=True, help="Folder to make.")
@click.option("--target", type=click.Choice(["onnx"]), default="onnx", show_default=True, help="Format.")
@click.option(
    "--what",
    type=click.Choice(["routers", "model"]),
    default="routers",
    show_default=True,
    help="Routers alone, or the whole decoder with its KV cache.",
)
@model_options
@click.option(
    "--dtype", type=DTYPES, default="float32", show_default=True, help="Of weights and activations."
)
@click.option(
    "--cache",
    type=click.Choice(["scatter", "concat"]),
    default="scatter",
    show_default=True,
    help="Static caches (opset 24), or growing ones (opset 18).",
)
@click.option(
    "--experts",
    type=click.Choice(["dense", "gather", "ort_moe", "trt_moe"]),
    default="dense",
    show_default=True,
    help="All experts, the chosen ones gathered, or a fused operator of ONNX Runtime or TensorRT.",
)
@click.option("--per-layer", is_flag=True, help="One file per router.")
@click.option("--overwrite", is_flag=True, help="Replace an earlier export.")
@json_option
def export_command(bundle: str, as_json: bool, **settings: Any) -> None:
    """Write BUNDLE as ONNX: one `spectral::BvhRoute` node per router, which any runtime can run."""
    from spectral_convert.export import export_bundle

    record = export_bundle(bundle, **settings)
    show(record, as_json, lambda out: _print_export(out, record))


def _print_export(out: Any, record: dict[str, Any]) -> None:
    modes = ", ".join(sorted({layer["mode"] for layer in record["layers"]}))
    count, opset = len(record["layers"]), record["opset"]
    out.print(f"{record['what']} of {record['base_model']}: {count} routers ({modes}), opset {opset}")
    for name, size in record["files"].items():
        out.print(f"{record['path']}/{name}  {size / 1e6:.2f} MB", markup=False)


@click.command("build-engine")
@click.argument("bundle")
@click.option("--out", required=True, help="The engine file.")
@click.option(
    "--what", type=click.Choice(["routers", "model"]), default="model", show_default=True, help="Of it."
)
@model_options
@click.option("--dtype", type=DTYPES, default="float16", show_default=True, help="Of all tensors.")
@click.option(
    "--cache",
    type=click.Choice(["scatter", "concat"]),
    default="scatter",
    show_default=True,
    help="KV cache.",
)
@click.option(
    "--experts",
    type=click.Choice(["dense", "gather", "trt_moe"]),
    default="dense",
    show_default=True,
    help="trt_moe runs on compute capability 10.x and 11.x only.",
)
@click.option("--batch", type=click.IntRange(1), default=1, show_default=True, help="Largest batch.")
@click.option("--prompt", type=click.IntRange(1), default=1024, show_default=True, help="Most tokens a call.")
@click.option(
    "--capacity", type=click.IntRange(1), default=2048, show_default=True, help="Tokens in the cache."
)
@click.option(
    "--tokens", type=click.IntRange(1), default=4096, show_default=True, help="Most rows, for routers."
)
@click.option("--version-compatible", is_flag=True, help="Runs on later versions; carries the plugin.")
@click.option("--overwrite", is_flag=True, help="Replace an earlier engine.")
@json_option
def build_engine_command(bundle: str, as_json: bool, **settings: Any) -> None:
    """Build a TensorRT engine of BUNDLE, or print the trtexec line that does."""
    from spectral_convert.export.tensorrt import build_engine

    record = build_engine(bundle, **settings)
    show(record, as_json, lambda out: _print_engine(out, record))


def _print_engine(out: Any, record: dict[str, Any]) -> None:
    out.print(f"engine written to {record['path']}", markup=False)
    out.print(f"the same by hand: {record['trtexec']}", markup=False)
