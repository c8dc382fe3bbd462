"""Finds code paths that route without entering the router modules: hooks and swapped classes are dead there."""

from __future__ import annotations

from torch import nn

from spectral_runtime.errors import ModelError

BLOCKS = {
    "Mxfp4GptOssMLP": "load the checkpoint with quantization_config=Mxfp4Config(dequantize=True)",
    "MegaBlocksMoeMLP": "load the model with use_kernels=False",
    "CPUMegaBlocksMoeMLP": "load the model with use_kernels=False",
}
"""Classes of blocks that route by themselves, and what to do."""
EXPERTS = {"deepgemm_megamoe": "load the model with experts_implementation='grouped_mm'"}
"""Experts implementations that route by themselves, and what to do."""
KERNELS = "load the model with use_kernels=False"


def refuse_bypassed(model: nn.Module) -> None:
    """Raises ModelError, with the remedy, when a block or experts implementation routes by itself."""
    for path, module in model.named_modules():
        kind = type(module).__name__
        if kind in BLOCKS:
            raise _bypassed(path, kind, BLOCKS[kind])
        chosen = getattr(getattr(module, "config", None), "_experts_implementation", None)
        if isinstance(chosen, str) and chosen in EXPERTS:
            raise _bypassed(
                path or type(model).__name__, f"the experts implementation {chosen}", EXPERTS[chosen]
            )


def refuse_kernel(path: str, router: nn.Module, block: nn.Module) -> None:
    """Raises ModelError when a kernel of the Hub stands in for the forward of a router or of its block."""
    for module in (router, block):
        # accelerate replaces forwards too, and keeps calling the old one
        if "forward" in module.__dict__ and not hasattr(module, "_hf_hook"):
            found = f"a replaced forward of {type(module).__name__}"
            raise _bypassed(path, found, KERNELS)


def _bypassed(path: str, found: str, remedy: str) -> ModelError:
    found = f"{found}, which routes by itself"
    return ModelError(path, expected="routers that the model enters", found=found, remedy=remedy)
