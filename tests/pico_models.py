"""Manufactures a tiny Mixture-of-Experts checkpoint per family: configuration, weights, tokenizer, text."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np

VOCABULARY = 160
EXPERTS, TOP_K = 8, 2
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    **dict.fromkeys(("hidden_size", "intermediate_size", "ffn_hidden_size"), 32),
    **dict.fromkeys(("moe_intermediate_size", "expert_ffn_hidden_size", "shared_intermediate_size"), 16),
    **dict.fromkeys(("shared_expert_intermediate_size", "moe_shared_expert_intermediate_size"), 16),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), EXPERTS),
    **dict.fromkeys(("num_experts_per_tok", "num_experts_per_token", "top_k_experts"), TOP_K),
    **dict.fromkeys(("moe_k", "moe_topk"), TOP_K),
    **dict.fromkeys(("num_hidden_layers", "num_attention_heads", "num_key_value_heads"), 2),
    **dict.fromkeys(("head_dim", "v_head_dim", "q_lora_rank", "kv_lora_rank"), 16),
    **dict.fromkeys(("qk_rope_head_dim", "qk_nope_head_dim"), 8),
    **dict.fromkeys(("first_k_dense_replace", "num_dense_layers", "n_shared_experts"), 1),
    "n_group": 4,
    "topk_group": 2,
    "max_position_embeddings": 256,
    "sliding_window": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}  # fmt: skip
"""Applied to every configuration that has the key."""

_LINEAR = {
    "layer_types": ["linear_attention", "full_attention"],
    **dict.fromkeys(("linear_num_value_heads", "linear_num_key_heads"), 2),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim"), 8),
}
FAMILIES: dict[str, dict[str, Any]] = {
    "olmoe": {},
    "flex_olmo": {},
    "mixtral": {},
    "qwen2_moe": {},
    "qwen3_moe": {"norm_topk_prob": True},
    "qwen3_next": _LINEAR,
    "qwen3_5_moe_text": _LINEAR,
    "deepseek_v2": {"topk_method": "group_limited_greedy", "head_dim": 8},
    "deepseek_v3": {"head_dim": 8},
    "gpt_oss": {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
    "glm4_moe": {},
    "granitemoe": {},
    "phimoe": {},
    "ernie4_5_moe": {},
    "hunyuan_v1_moe": {},
    "minimax": {},
    "minimax_m2": {},
    "dots1": {"norm_topk_prob": True, "routed_scaling_factor": 1.5},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "longcat_flash": {"head_dim": 8, "num_layers": 2, "num_hidden_layers": 4, "zero_expert_num": 2},
    "afmoe": {},
    "jamba": {"attn_layer_offset": 1, "attn_layer_period": 2, "expert_layer_offset": 1,
              "expert_layer_period": 2, "mamba_d_state": 4, "mamba_dt_rank": 4},
    "nemotron_h": {"mamba_num_heads": 4, "mamba_head_dim": 8, "ssm_state_size": 8, "n_groups": 1,
                   "moe_shared_expert_intermediate_size": 16,
                   "layers_block_type": ["mamba", "moe", "attention", "moe"]},
    "kimi_linear": {"layer_types": ["linear_attention", "full_attention"],
                    "linear_attn_config": {"head_dim": 8, "num_heads": 2}},
    "gemma4_text": {"enable_moe_block": True, "hidden_size_per_layer_input": 0, "global_head_dim": 16,
                    "num_kv_shared_layers": 0, "layer_types": ["sliding_attention", "full_attention"]},
    "llama4_text": {"num_experts_per_tok": 1, "intermediate_size_mlp": 32},
    "cohere2_moe": {},
    "exaone_moe": {},
    "mellum": {},
    "jetmoe": {},
    "dbrx": {"d_model": 32, "n_heads": 2, "n_layers": 2, "max_seq_len": 256,
             "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0},
             "ffn_config": {"hidden_size": 32, "ffn_hidden_size": 32, "moe_num_experts": 8, "moe_top_k": 2}},
}  # fmt: skip
"""What a family needs beside the sizes."""


def pico_config(family: str, **changes: Any) -> Any:
    """The configuration of a family with tiny sizes."""
    from transformers import CONFIG_MAPPING

    kind = CONFIG_MAPPING[family]
    aliases = getattr(kind, "attribute_map", {})
    keys = set(kind().to_dict()) | set(aliases)
    sizes = {key: value for key, value in SIZES.items() if key in keys}
    for alias, name in aliases.items():
        if name in sizes:
            sizes.pop(alias, None)
    return kind(**{**sizes, **FAMILIES[family], **changes})


def pico_model(family: str, seed: int = 0, **changes: Any) -> Any:
    """A random model of a family in float32, its gates spread enough that experts differ."""
    import torch
    from transformers import AutoModelForCausalLM

    logging.getLogger("transformers").setLevel(logging.ERROR)
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(pico_config(family, **changes)).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if not tensor.is_floating_point():
                continue
            if not torch.isfinite(tensor).all() or (tensor.dim() > 2 and tensor.abs().max() > 1e3):
                tensor.normal_(0.0, 0.1, generator=generator)  # some families leave experts uninitialised
        for site in _sites(model):
            site.weight.normal_(0.0, 0.4, generator=generator)
            if site.choice_bias is not None:
                site.choice_bias.uniform_(-0.1, 0.1, generator=generator)
    return model


def _sites(model: Any) -> Any:
    from spectral_runtime.attaching.discovery import find_routers

    return find_routers(model)


def write_tokenizer(folder: Path) -> Any:
    """A byte-level BPE of 160 tokens, trained on the pico text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE(unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    special = ["<pad>", "<s>", "</s>", "<unk>"]
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=special, show_progress=False)
    core.train_from_iterator(pico_documents(), trainer)
    names = dict(zip(("pad_token", "bos_token", "eos_token", "unk_token"), special, strict=True))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, **names)
    tokenizer.save_pretrained(folder)
    return tokenizer


def write_checkpoint(folder: Path, family: str, seed: int = 0, **changes: Any) -> Path:
    """A checkpoint folder of a family as transformers would write it."""
    pico_model(family, seed, **changes).save_pretrained(folder)
    write_tokenizer(folder)
    return folder


def pico_documents(count: int = 24, words: int = 40, seed: int = 5) -> list[str]:
    """Documents of invented words; every one starts differently."""
    rng = np.random.default_rng(seed)
    stems = ["ba", "lo", "mi", "tre", "ku", "sa", "ne", "vor", "pi", "gha"]
    made = ["".join(rng.choice(stems, size=rng.integers(1, 4))) for _ in range(60)]
    return [" ".join([str(n), *rng.choice(made, size=words)]) + "." for n in range(count)]


def write_text(file: Path, **options: Any) -> Path:
    """The documents as a calibration file."""
    file.write_text("\f".join(pico_documents(**options)), encoding="utf-8")
    return file


def convert_in_child(settings: dict[str, Any], started: Any = None) -> None:
    """A conversion for a process that may be killed; progress and remarks go nowhere."""
    import os
    import sys
    import warnings

    import torch

    from spectral_convert.convert import convert_checkpoint

    warnings.simplefilter("ignore")
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115, PTH123
    torch.set_num_threads(1)
    if started is not None:
        started.set()
    convert_checkpoint(**settings)
