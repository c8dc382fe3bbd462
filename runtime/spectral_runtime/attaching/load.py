"""`load_model`: from a bundle to a ready transformers model and tokenizer, routers attached."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from spectral_runtime.attaching.attachment import attach
from spectral_runtime.bundle import Bundle, load_bundle
from spectral_runtime.bundle.manifest import CARRIED, Mode
from spectral_runtime.errors import ConfigError, ModelError

REMOTE = "read that code first; if you trust it, allow it with --trust-remote-code (trust_remote_code=True)"


class NotCausal(ModelError):
    """The architecture is not a causal language model."""


def load_base(
    source: str | Path,
    *,
    revision: str | None = None,
    dtype: Any = "auto",
    device: str = "cpu",
    **options: Any,
) -> tuple[Any, Any]:
    """The untouched base model in evaluation mode, and its tokenizer.

    Args:
        source: hub id or folder.
        revision: commit or branch on the Hub.
        dtype: torch dtype or its name; "auto" is the checkpoint's own.
        device: where the model goes.
        **options: passed to transformers' `from_pretrained` of both.

    Raises:
        ModelError: when the checkpoint is absent, incomplete or of an unknown architecture.
    """
    from transformers import AutoConfig, AutoTokenizer

    options.setdefault("trust_remote_code", False)  # None would ask at a terminal
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(source), revision=revision, **options)
        config = AutoConfig.from_pretrained(str(source), revision=revision, **options)
        kind = model_class(config)
        options = plain_weights(config) | options
        model = kind.from_pretrained(str(source), config=config, revision=revision, dtype=dtype, **options)
    except (OSError, ValueError, KeyError, ImportError) as error:  # FP8 weights need accelerate
        reason = str(error).strip().splitlines()[0]
        if "trust_remote_code" in str(error):
            raise ModelError(
                str(source),
                expected="code that transformers ships",
                found="code of the checkpoint",
                remedy=REMOTE,
            ) from error
        remedy = "give a Hub id or a folder with config.json, the tokenizer and every safetensors shard"
        raise ModelError(
            str(source), expected="a complete transformers checkpoint", found=reason, remedy=remedy
        ) from error
    return model.to(device).eval(), tokenizer


def load_base_of(bundle: Bundle, base: str | Path | None = None, **options: Any) -> tuple[Any, Any]:
    """`load_base` of the model a bundle names or carries; `base` is where the named one lies now.

    Raises:
        ConfigError: a `base` for a bundle that carries its model.
    """
    named = bundle.manifest.base_model
    if named.id != CARRIED:
        return load_base(base or named.id, revision=None if base else named.revision, **options)
    if base is not None:
        remedy = "leave it away; to compare with the original model use `spectral evaluate --against`"
        expected = "none, for a bundle that carries its healed model"
        raise ConfigError("base", expected=expected, found=str(base), remedy=remedy)
    source, revision = carrier_of(bundle.path)
    return load_base(source, revision=revision, **options)


def carrier_of(folder: Path) -> tuple[str, str | None]:
    """The checkpoint around a bundle's folder: a local one, or where a snapshot of the Hub's cache came from."""
    around = folder.parent
    place = around.parent.parent.name
    if around.parent.name == "snapshots" and place.startswith("models--"):
        return place.removeprefix("models--").replace("--", "/"), around.name
    return str(around), None


def plain_weights(config: Any) -> dict[str, Any]:
    """Options that load MXFP4 weights dequantised: their kernels route without entering the router modules."""
    stated = getattr(config, "quantization_config", None) or {}
    method = stated.get("quant_method") if isinstance(stated, dict) else getattr(stated, "quant_method", None)
    if getattr(method, "value", method) != "mxfp4":
        return {}
    from transformers import Mxfp4Config

    return {"quantization_config": Mxfp4Config(dequantize=True)}


def model_class(config: Any) -> Any:
    """The transformers class that builds this configuration's language model, of text or of text and images.

    Raises:
        NotCausal: when the architecture is not a causal language model.
    """
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    for kind in (AutoModelForCausalLM, AutoModelForImageTextToText):
        if type(config) in kind._model_mapping or kind.__name__ in (getattr(config, "auto_map", None) or {}):
            return kind
    found = f"{config.model_type}, which is not one"
    raise NotCausal("config.json", expected="a causal language model", found=found)


def load_model(
    bundle: Bundle | str | Path,
    *,
    base: str | Path | None = None,
    mode: Mode | None = None,
    candidates: int | None = None,
    dtype: Any = "auto",
    device: str = "cpu",
    **options: Any,
) -> tuple[Any, Any]:
    """The base model with the bundle's routers attached, and its tokenizer.

    The attachment is `model.spectral_attachment`; its `detach()` gives the original model back.

    Args:
        bundle: a loaded bundle, its folder, or its hub id.
        base: where the base model lies now, when not at the place the bundle names.
        mode: one mode for all layers; None takes each layer's own.
        candidates: overrides C of `prefilter`.
        dtype: torch dtype or its name; "auto" is the checkpoint's own.
        device: where the model goes.
        **options: passed to transformers' `from_pretrained`.
    """
    hub = {key: options[key] for key in ("token", "cache_dir", "local_files_only") if key in options}
    loaded = bundle if isinstance(bundle, Bundle) else load_bundle(bundle, **hub)
    model, tokenizer = load_base_of(loaded, base, dtype=dtype, device=device, **options)
    model.spectral_attachment = attach(model, loaded, mode, candidates=candidates)
    return model, tokenizer
