"""The table of families: every architecture that declares routers, built on the meta device and classified."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spectral_convert.families.classify import classify_routers
from spectral_runtime.attaching.discovery import find_routers
from spectral_runtime.attaching.load import NotCausal, model_class
from spectral_runtime.errors import ModelError
from spectral_runtime.gate import GateRule

DECLARED = re.compile(
    r"[\"']router_logits[\"']\s*:|^class \w*(Top[kK](Router|Gating)|MoEV\d+Gate|(Llama4|Dbrx)Router)\(",
    re.MULTILINE,
)
"""What tells modelling code with routers: that it records them, or a router class where older versions do not."""
GEMMA4 = {"enable_moe_block": True, "num_experts": 128, "top_k_experts": 8, "moe_intermediate_size": 704}
INDEXER = {"indexer_n_heads": 4, "indexer_kv_heads": 1, "indexer_head_dim": 256, "indexer_budget": 2048,
           "indexer_compress_ratio": 4}  # fmt: skip
SWITCHED_ON: dict[str, dict[str, Any]] = {
    "gemma4": {"text_config": {"model_type": "gemma4_text", **GEMMA4}},
    "gemma4_text": GEMMA4,
    "diffusion_gemma": {"text_config": {k: v for k, v in GEMMA4.items() if k != "enable_moe_block"}},
    "granitemoehybrid": {"num_local_experts": 32, "num_experts_per_tok": 8},
    "doge": {"is_moe": True},
    "deepseek_ocr2": {
        "text_config": {
            "num_experts_per_tok": 6,
            "n_group": 1,
            "topk_group": 1,
            "mlp_layer_types": ["dense"] + ["sparse"] * 11,
        }
    },
    "deepseek_v2": {
        "num_experts_per_tok": 6,
        "n_group": 8,
        "topk_group": 3,
        "topk_method": "group_limited_greedy",
    },
    "dots1": {
        "n_routed_experts": 128,
        "num_experts_per_tok": 6,
        "n_shared_experts": 2,
        "first_k_dense_replace": 1,
    },
    "hunyuan_v1_moe": {"num_experts": 64, "moe_topk": 8, "head_dim": 128},
    "lfm2_moe": {"layer_types": ["conv", "conv", "full_attention"] * 10 + ["conv", "conv"]},
    "qwen4_exp": {"text_config": INDEXER},
    "qwen4_exp_text": INDEXER,
    "dbrx": {"attn_config": {"rope_theta": 10_000.0}},
}
"""Families whose default configuration has no experts, or does not build: what a real checkpoint sets."""
NOT_CAUSAL = "not a causal language model of its own: a part of one, an encoder-decoder or a classifier"
LAYERS = 4
"""Layers built of each family: enough that dense first layers are followed by one with experts."""


@dataclass(frozen=True, slots=True)
class FamilyRow:
    """One architecture: whether it converts, by which rule, or why not."""

    model_type: str
    supported: bool
    rule: str
    """The scoring rule in one line, for the default configuration."""
    experts: int
    top_k: int
    reason: str
    """Why it is refused; empty where supported."""


def list_families() -> list[FamilyRow]:
    """One row per `model_type` that declares routers in the installed transformers, by name."""
    return [family_row(model_type) for model_type in sorted(declaring_types())]


def declaring_types() -> Iterator[str]:
    """Model types of the language models whose modelling code has routers."""
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES, model_type_to_module_name

    root = Path(transformers.__file__).parent / "models"
    declaring = {
        file.parent.name for file in root.glob("*/modeling_*.py") if DECLARED.search(file.read_text("utf-8"))
    }
    for model_type in CONFIG_MAPPING_NAMES:
        part = re.search(r"_(vision|audio|talker|code|token)", model_type)
        if model_type_to_module_name(model_type) in declaring and not part:
            yield model_type


def family_row(model_type: str) -> FamilyRow:
    """The row of one model type, from its routers as its own code builds them."""
    try:
        rules = set(classify_family(model_type))
    except NotCausal:
        return FamilyRow(model_type, False, "", 0, 0, NOT_CAUSAL)
    except ModelError as refusal:
        said = refusal.found if " " in refusal.found else f"{refusal.found}: expected {refusal.expected}"
        return FamilyRow(model_type, False, "", 0, 0, said)
    except Exception as error:  # a default configuration that transformers itself cannot build
        reason = f"its default configuration does not build: {type(error).__name__}: {error}".splitlines()[0]
        return FamilyRow(model_type, False, "", 0, 0, reason[:160])
    rule = max(rules, key=lambda r: r.experts)
    return FamilyRow(model_type, True, rule_text(rule), rule.experts, rule.top_k, "")


def classify_family(model_type: str) -> Iterator[GateRule]:
    """The rules of a family's routers, from its default configuration; tensors stay on the meta device.

    Raises:
        ModelError: when the family is refused.
    """
    import torch
    from transformers import CONFIG_MAPPING

    settings = SWITCHED_ON.get(model_type, {})
    with torch.device("meta"), _quiet():
        config = CONFIG_MAPPING[model_type](**settings)
        try:
            shorten(config)
            model = model_class(config).from_config(config)
        except ValueError:  # settings by layer number do not survive a cut
            config = CONFIG_MAPPING[model_type](**settings)
            model = model_class(config).from_config(config)
    yield from classify_routers(find_routers(model))


def shorten(config: Any) -> None:
    """Leaves a few layers of a configuration, its per-layer lists cut alike."""
    for part in [config, *(v for v in vars(config).values() if hasattr(v, "to_dict"))]:
        layers = getattr(part, "num_hidden_layers", None)
        if not isinstance(layers, int) or layers <= LAYERS:
            continue
        for name, value in list(vars(part).items()):
            if isinstance(value, list) and len(value) == layers:
                setattr(part, name, value[: LAYERS - 1] + value[-1:])
        with contextlib.suppress(AttributeError, NotImplementedError, TypeError):
            part.num_hidden_layers = LAYERS


def rule_text(rule: GateRule) -> str:
    """A rule in words, the parts that are on."""
    plain = GateRule(experts=rule.experts, top_k=rule.top_k)
    chosen = rule.score + (" + bias" if rule.choice_bias else "")
    parts = [f"{chosen} -> top {rule.top_k} of {rule.experts}"]
    if rule.groups > 1:
        parts.append(f"{rule.groups_kept} of {rule.groups} groups by {rule.group_score}")
    parts.append(
        {"score": "weight = score", "sparsemixer": "sparsemixer"}.get(rule.weight, f"{rule.weight} of chosen")
    )
    named = ("scale", "logit_scale", "softcap")
    changed = [
        f"{name} {getattr(rule, name):g}" for name in named if getattr(rule, name) != getattr(plain, name)
    ]
    flags = [
        text for on, text in ((rule.normalise, "normalised"), (rule.expert_scale, "scale per expert")) if on
    ]
    return ", ".join([*parts, *flags, *changed])


def as_records(rows: list[FamilyRow]) -> list[dict[str, Any]]:
    """The rows as JSON values."""
    return [dataclasses.asdict(row) for row in rows]


def families_lines(records: list[dict[str, Any]]) -> str:
    """The table of `families`: a line each, as long as it needs to be."""
    width = max((len(row["model_type"]) for row in records), default=0)
    return "\n".join(
        f"{row['model_type']:<{width}}  {'yes' if row['supported'] else 'no '}  {row['rule'] or row['reason']}"
        for row in records
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Transformers remarks on absent kernels and odd defaults; none of it concerns a table."""
    logger = logging.getLogger("transformers")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
