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
