"""Tokens per second of a running transformers model on a GPU, before and after `attach`: python bench_attach_gpu.py
MODEL BUNDLE OUT.json [--compile]. Prefill and decode, batch 1 and 32, eager and as a CUDA graph with a static cache."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

import torch
from transformers import StaticCache

from spectral_convert.device_timing import Arm, Spread, measure
from spectral_runtime import load_bundle
from spectral_runtime.attaching import attach, find_routers
from spectral_runtime.attaching.load import load_base

os.environ["SPECTRAL_FUSED"] = "1"
PREFILL = 512
CACHE = 1024


def decode_step(model: Any, batch: int) -> Any:
    """One greedy step at position PREFILL over a filled static cache; fixed addresses, so it can be captured."""
    cache = StaticCache(config=model.config, max_cache_len=CACHE)
    token = torch.randint(100, 1000, (batch, 1), device="cuda")
    prompt = torch.randint(100, 1000, (batch, PREFILL), device="cuda")
    position = torch.tensor([PREFILL], device="cuda")
    model(
        input_ids=prompt,
        past_key_values=cache,
        cache_position=torch.arange(PREFILL, device="cuda"),
        use_cache=True,
    )
    places = position.expand(batch, 1)

    def step(_: int) -> Any:
        return model(
            input_ids=token,
            past_key_values=cache,
            cache_position=position,
            position_ids=places,
            use_cache=True,
        ).logits

    return step


def prefill(model: Any, batch: int) -> Any:
    prompt = torch.randint(100, 1000, (batch, PREFILL), device="cuda")
    return lambda _: model(input_ids=prompt, use_cache=False).logits


def time_model(model: Any, batch: int) -> dict[str, dict[str, Spread | None]]:
    """Both phases; the capture falls back to eager alone where the experts' code cannot be captured."""
    found = {}
    for phase, make, tokens in (("prefill", prefill, batch * PREFILL), ("decode", decode_step, batch)):
        for capturable in (True, False):
            try:
                times = measure(
                    {phase: Arm(make(model, batch), capturable=capturable)}, repeats=12, budget=0.4
                )[phase]
                break
            except RuntimeError as error:
                print("not capturable:", phase, batch, str(error).splitlines()[0][:150], flush=True)
                torch.cuda.synchronize()
        rates = {
            k: None if s is None else round(tokens / s.median * 1e6) for k, s in times.items() if k != "cold"
        }
        found[phase] = {
            "tokens_per_s": rates,
            "us": {k: None if s is None else s.median for k, s in times.items()},
        }
    return found


def router_share(model: Any, batch: int) -> float:
    """Microseconds of all routers of one decode step, as the family's own code in a CUDA graph."""
    sites = find_routers(model)
    hidden = torch.randn(batch, model.config.hidden_size, device="cuda").bfloat16()
    times = measure({"router": Arm(lambda _: sites[0].module(hidden))}, repeats=12)["router"]["graph"]
    return 0.0 if times is None else times.median * len(sites)


@torch.inference_mode()
def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("model")
    arguments.add_argument("bundle")
    arguments.add_argument("out")
    arguments.add_argument("--compile", action="store_true")
    given = arguments.parse_args()
    model, _ = load_base(given.model, dtype="bfloat16", device="cuda")
    if hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("grouped_mm")
    bundle, rows = load_bundle(given.bundle), []
    for batch in (1, 32):
        share = router_share(model, batch)
        for mode in (None, "dense", "prefilter", "geometric"):
            attachment = attach(model, bundle, mode) if mode else None
            name = "untouched" if mode is None else f"attached, {mode}"
            fused = [layer.fused >= 0 for layer in attachment.layers] if attachment else []
            found = time_model(model, batch)
            step = found["decode"]["us"]["graph"] or found["decode"]["us"]["eager"]
            ceiling = step / max(step - share, 1e-9) if mode is None else None
            rows.append({"batch": batch, "arm": name, "fused_layers": sum(fused), "amdahl_ceiling": ceiling,
                         "router_us_per_step": share if mode is None else None, **found})  # fmt: skip
            print(json.dumps(rows[-1]), flush=True)
            if attachment:
                attachment.detach()
        Path(given.out).write_text(json.dumps(rows, indent=1))
    if given.compile:
        compiled(model, bundle, rows)
        Path(given.out).write_text(json.dumps(rows, indent=1))


def compiled(model: Any, bundle: Any, rows: list[Any]) -> None:
    """Decode at batch 1 under torch.compile with CUDA graphs, untouched and with the fused dense gate."""
    for mode in (None, "dense"):
        attachment = attach(model, bundle, mode) if mode else None
        torch._dynamo.reset()
        step = torch.compile(decode_step(model, 1), mode="reduce-overhead")
        times = measure({"decode": Arm(step, capturable=False)}, repeats=12)["decode"]["eager"]
        assert times is not None
        rows.append({"batch": 1, "arm": f"compiled, {mode or 'untouched'}", "decode": {"us": times.median,
                     "tokens_per_s": round(1e6 / times.median)}})  # fmt: skip
        print(json.dumps(rows[-1]), flush=True)
        if attachment:
            attachment.detach()


if __name__ == "__main__":
    main()
