"""The rules, modes and arrays of the cases that GPU runs check routing steps with; needs nothing but Python."""

from __future__ import annotations

from typing import Any

RULES: dict[str, dict[str, Any]] = {
    "softmax": {},
    "normalised": {"normalise": True, "normalise_eps": 1e-6},
    "softmax_of_chosen": {"score": "logits", "weight": "softmax"},
    "sigmoid_groups": {
        "score": "sigmoid", "choice_bias": True, "groups": 4, "groups_kept": 2, "normalise": True, "scale": 2.5,
    },
    "softplus": {"score": "sqrtsoftplus", "choice_bias": True, "normalise": True},
    "sparsemixer": {"score": "logits", "weight": "sparsemixer", "threshold": 0.02},
}  # fmt: skip
MODES = ("dense", "prefilter", "geometric")
TOKENS = (1, 33, 130)
ARRAYS = ("mean", "projection", "directions", "beta", "spread", "gate_weight", "gate_bias", "choice_bias",
          "bvh_first", "bvh_count", "bvh_experts")  # fmt: skip
"""Of a node, after its hidden states: `export.routes.INPUTS`."""
