"""Export: a bundle's routers, or the whole converted decoder, as ONNX for the runtimes of apps."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import spectral_runtime
from spectral_runtime.bundle import Bundle, load_bundle
from spectral_runtime.bundle.manifest import Mode
from spectral_runtime.errors import ConfigError

if TYPE_CHECKING:
    from spectral_convert.export.routes import Route

__all__ = ["export_bundle"]

logger = logging.getLogger(__name__)

What = Literal["routers", "model"]


def export_bundle(
    bundle: str | Path,
    *,
    out: str | Path,
    target: Literal["onnx"] = "onnx",
    what: What = "routers",
    base: str | None = None,
    mode: Mode | None = None,
    candidates: int | None = None,
    dtype: str = "float32",
    cache: Literal["scatter", "concat"] = "scatter",
    experts: Literal["dense", "gather", "ort_moe", "trt_moe"] = "dense",
    per_layer: bool = False,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Writes ONNX models of a bundle into a new folder and returns the record in its `export.json`.

    Args:
        bundle: folder or hub id.
        out: folder to make.
        target: the only one there is; engines are made from it by `build_engine`.
        what: `routers`, hidden states to experts of every layer; or `model`, token ids to logits.
        base: where the base model lies now; None: where the bundle says.
        mode: one mode for all layers; None takes each layer's own.
        candidates: overrides C of `prefilter`.
        dtype: of weights and activations: float32, float16 or bfloat16.
        cache: `scatter`, static ones (opset 24: TensorScatter, Attention); or `concat`, growing (opset 18).
        experts: `dense`, every expert; `gather`, the chosen ones; or a fused operator of one runtime.
        per_layer: one file per router instead of one for all.
        overwrite: replace an earlier export.

    Raises:
        ConfigError: a setting that does not fit, the `onnx` package missing, or `out` in the way.
        BundleError, ModelError: as `attach`, or a model of a kind that is not exported.
    """
    _require_onnx()
    _check(what, dtype, per_layer)
    from spectral_convert.export.files import new_folder, write_record

    settings: dict[str, Any] = {"mode": mode, "candidates": candidates, "dtype": dtype}
    with new_folder(out, overwrite) as folder:
        loaded = load_bundle(bundle)
        if what == "routers":
            record = _write_routers(loaded, folder, base, per_layer, **settings)
        else:
            record = _write_decoder(loaded, folder, base, cache, experts, **settings)
        record = {**_origin(loaded), "target": target, "what": what, **settings, **record}
        write_record(folder, record)
    logger.info("exported %s to %s", what, out)
    return {"path": str(Path(out).expanduser().resolve()), **record}


def _require_onnx() -> None:
    try:
        import onnx  # noqa: F401
    except ImportError as error:
        remedy = "pip install 'spectral-moe[onnx]'"
        raise ConfigError("export", expected="the onnx package", found=str(error), remedy=remedy) from error


def _check(what: str, dtype: str, per_layer: bool) -> None:
    if dtype not in ("float32", "float16", "bfloat16"):
        raise ConfigError("export.dtype", expected="float32, float16 or bfloat16", found=dtype)
    if per_layer and what != "routers":
        raise ConfigError("export.per_layer", expected="what=routers", found=f"what={what}")


def _origin(bundle: Bundle) -> dict[str, Any]:
    import onnx

    named = bundle.manifest.base_model
    return {
        "tools": {"spectral": spectral_runtime.__version__, "onnx": onnx.__version__},
        "base_model": named.id,
        "revision": named.revision,
        "routers_sha256": named.routers_sha256,
    }


def _write_routers(
    bundle: Bundle, folder: Path, base: str | None, per_layer: bool, *, mode: Any, candidates: Any, dtype: str
) -> dict[str, Any]:
    from spectral_convert.export.files import save_model
    from spectral_convert.export.graphs import OPSET, routers_model
    from spectral_convert.export.routes import carries_what_it_needs, routes_of_bundle, routes_of_model

    if base is None and dtype == "float32" and carries_what_it_needs(bundle, mode):
        routes = routes_of_bundle(bundle, mode, candidates)
    else:
        routes = routes_of_model(_base_model(bundle, base, dtype)[0], bundle, mode, candidates)
    groups = [[route] for route in routes] if per_layer else [list(routes)]
    names = [f"router.{i}.onnx" for i in range(len(routes))] if per_layer else ["routers.onnx"]
    for name, group in zip(names, groups, strict=True):
        save_model(routers_model(group, dtype), folder / name)
    return {"opset": OPSET, "files": _files(folder), "layers": _layers(routes)}


def _write_decoder(
    bundle: Bundle,
    folder: Path,
    base: str | None,
    cache: Any,
    experts: Any,
    *,
    mode: Any,
    candidates: Any,
    dtype: str,
) -> dict[str, Any]:
    from spectral_convert.export.decoder import OPSETS, decoder_model
    from spectral_convert.export.files import save_model
    from spectral_convert.export.routes import routes_of_model
    from spectral_convert.export.trace import trace_decoder, unplain_experts

    model, tokenizer = _base_model(bundle, base, dtype)
    routes = routes_of_model(model, bundle, mode, candidates)
    own = experts == "gather" and any(unplain_experts(model))
    skeleton = trace_decoder(model, [route.rule for route in routes], cache, rewrite_experts=not own)
    save_model(decoder_model(skeleton, routes, experts), folder / "model.onnx")
    tokenizer.save_pretrained(folder)
    shapes = [{"key": [s.heads, s.key], "value": [s.value_heads, s.value]} for s in skeleton.caches]
    form = {"cache": cache, "experts": experts, "caches": shapes}
    return {"opset": OPSETS[cache], **form, "files": _files(folder), "layers": _layers(routes)}


def _base_model(bundle: Bundle, base: str | None, dtype: str) -> tuple[Any, Any]:
    from spectral_runtime.attaching.load import load_base_of

    return load_base_of(bundle, base, dtype=dtype)


def _files(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in sorted(folder.iterdir()) if ".onnx" in path.name}


def _layers(routes: Sequence[Route]) -> list[dict[str, Any]]:
    return [
        {
            "path": route.path,
            "mode": route.mode,
            "candidates": route.candidates,
            "experts": route.rule.experts,
            "top_k": route.rule.top_k,
            "digest": route.digest,
        }
        for route in routes
    ]
