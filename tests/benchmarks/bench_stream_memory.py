"""Peak memory of a streamed conversion of a manufactured checkpoint of OLMoE-1B-7B's shape, sampled from /proc.

    python tests/benchmarks/bench_stream_memory.py FOLDER [--layers 16] [--evidence FILE]

FOLDER receives 14 GB; it is left there for a second run.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).parents[1]))
from pico_models import write_text, write_tokenizer

GIB, MIB = 2**30, 2**20
BOUND = "2.2 x largest layer + embeddings + 1 GiB"


def write_checkpoint(folder: Path, layers: int) -> None:
    """Random bfloat16 weights under the names of the published checkpoint, a shard a layer."""
    from transformers import OlmoeConfig

    config = OlmoeConfig(
        intermediate_size=1024, num_hidden_layers=layers, dtype="bfloat16", architectures=["OlmoeForCausalLM"]
    )
    folder.mkdir(parents=True, exist_ok=True)
    write_tokenizer(folder)
    index: dict[str, str] = {}

    def shard(number: int, tensors: dict[str, torch.Tensor]) -> None:
        name = f"model-{number:05d}.safetensors"
        save_file(tensors, folder / name, metadata={"format": "pt"})
        index.update(dict.fromkeys(tensors, name))

    width, inner = config.hidden_size, config.intermediate_size
    torch.manual_seed(0)
    pool = (torch.randn(width * width) * 0.02).bfloat16()
    embedding = (torch.randn(config.vocab_size, width) * 0.02).bfloat16()
    shard(0, {"model.embed_tokens.weight": embedding, "lm_head.weight": embedding.flip(0).contiguous(),
              "model.norm.weight": torch.ones(width).bfloat16()})  # fmt: skip
    for layer in range(layers):
        shard(layer + 1, dict(_layer(f"model.layers.{layer}", config, pool, (width, inner))))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    config.save_pretrained(folder)


def _layer(name: str, config: Any, pool: torch.Tensor, sizes: tuple[int, int]) -> Any:
    width, inner = sizes
    ones = torch.ones(width).bfloat16()
    for norm in ("input_layernorm", "post_attention_layernorm", "self_attn.q_norm", "self_attn.k_norm"):
        yield f"{name}.{norm}.weight", ones.clone()
    for part in "qkvo":
        yield f"{name}.self_attn.{part}_proj.weight", pool.roll("qkvo".index(part) * 131).view(width, width)
    yield f"{name}.mlp.gate.weight", (torch.randn(config.num_experts, width) * 0.05).bfloat16()
    for expert in range(config.num_experts):
        piece = pool[: width * inner].roll(expert)
        yield f"{name}.mlp.experts.{expert}.gate_proj.weight", piece.view(inner, width).clone()
        yield f"{name}.mlp.experts.{expert}.up_proj.weight", piece.roll(7).view(inner, width)
        yield f"{name}.mlp.experts.{expert}.down_proj.weight", piece.roll(11).view(width, inner)


def sizes_of(folder: Path) -> dict[str, int]:
    """Bytes of the whole, of the largest layer, and of embeddings and head."""
    from spectral_convert.stream.shards import read_headers, shard_files

    layers: dict[str, int] = {}
    total = outside = 0
    for name, stored in read_headers(shard_files(folder)).items():
        total += stored.bytes
        if ".layers." in name:
            key = name.split(".layers.")[1].split(".")[0]
            layers[key] = layers.get(key, 0) + stored.bytes
        else:
            outside += stored.bytes
    return {
        "checkpoint": total,
        "largest_layer": max(layers.values()),
        "embeddings": outside,
        "layers": len(layers),
    }


def watch(process: subprocess.Popen[bytes]) -> dict[str, int]:
    """Highest anonymous and whole resident memory of a process, every 20 ms, in bytes."""
    peak = {"RssAnon": 0, "VmHWM": 0}
    while process.poll() is None:
        try:
            lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
        except OSError:
            break
        for line in lines:
            key, _, value = line.partition(":")
            if key in peak:
                peak[key] = max(peak[key], int(value.split()[0]) * 1024)
        time.sleep(0.02)
    return peak


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=600)
    parser.add_argument("--evidence", type=Path)
    arguments = parser.parse_args()
    model = arguments.folder / "checkpoint"
    if not (model / "config.json").is_file():
        write_checkpoint(model, arguments.layers)
    text = write_text(arguments.folder / "text.txt", count=60)
    command = [
        sys.executable, "-m", "spectral_convert", "convert", str(model), "--calibration", str(text),
        "--tokens", str(arguments.tokens), "--sequence-length", "128", "--dtype", "bfloat16", "--alpha", "0.1",
        "--load", "stream", "--out", str(arguments.folder / "bundle"), "--overwrite",
    ]  # fmt: skip
    begun = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    peak = watch(process)
    seconds = time.perf_counter() - begun
    if process.returncode:
        sys.exit(process.returncode)
    sizes = sizes_of(model)
    bound = int(2.2 * sizes["largest_layer"] + sizes["embeddings"] + GIB)
    record = {
        "command": "python tests/benchmarks/bench_stream_memory.py FOLDER --tokens 600 --evidence "
        "tests/benchmarks/evidence/stream_memory.json",
        "shape": f"OLMoE-1B-7B, {sizes['layers']} layers, random bfloat16 weights",
        "tokens": arguments.tokens,
        "checkpoint_mib": sizes["checkpoint"] // MIB,
        "largest_layer_mib": sizes["largest_layer"] // MIB,
        "embeddings_mib": sizes["embeddings"] // MIB,
        "bound": BOUND,
        "bound_mib": bound // MIB,
        "peak_anonymous_mib": peak["RssAnon"] // MIB,
        "peak_resident_mib": peak["VmHWM"] // MIB,
        "resident_note": "VmHWM; memory of the libraries and of mapped files included",
        "seconds": round(seconds, 1),
        "torch": torch.__version__,
    }
    print(json.dumps(record, indent=1))
    if arguments.evidence:
        arguments.evidence.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    if peak["VmHWM"] > bound:
        sys.exit("peak memory is above the bound")


if __name__ == "__main__":
    main()
