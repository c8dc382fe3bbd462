"""The CUDA back-end of `Router`: thin over the fused projection, scan and tree walk; opens the driver on first use."""

from __future__ import annotations

from typing import Any

import numpy as np

from spectral_runtime import reference
from spectral_runtime.errors import InternalError
from spectral_runtime.gate import GateRule
from spectral_runtime.geometry import Bvh, Floats, Geometry, Ints

try:
    from spectral_runtime import _native
except ImportError as error:  # a source tree without a compiler
    _native = None  # type: ignore[assignment]
    _REASON = f"the native core is not built ({error})"

MAX_CANDIDATES = 32
"""C of one launch; one lane of a warp holds one candidate."""
MAX_ROW = 1024
"""Experts of the kernels that execute the whole gate rule."""

MAX_ONE_LAUNCH = 256
"""Experts up to which the exact gate in one launch beats the families' own chain at every batch (H100): at 512 and
1 024 tokens it takes 35 microseconds and the chain 65, at 65 536 tokens 1 155 and two library calls 405."""

SCORES = ("softmax", "sigmoid", "sqrtsoftplus", "logits")
WEIGHTS = ("score", "softmax", "sigmoid")
DTYPES = ("float32", "float16", "bfloat16")


def unavailable() -> str | None:
    """The reason why this back-end cannot run here, or None."""
    if _native is None:
        return _REASON
    if not hasattr(_native, "cuda_absent"):
        return "the native core is older than this back-end; install again"
    return _native.cuda_absent() or None


def unsupported(rule: GateRule) -> str | None:
    """Why the fused kernels cannot execute a gate rule, or None."""
    limits = (
        (rule.experts > MAX_ROW, f"more than {MAX_ROW} experts"),
        (rule.top_k > MAX_CANDIDATES, f"more than {MAX_CANDIDATES} chosen experts"),
        (rule.groups > 32, "more than 32 groups"),
        (rule.weight not in WEIGHTS, f"weights by {rule.weight}"),
        (rule.logit_scale != 1.0 or rule.softcap != 0.0, "bent logits"),
        (rule.expert_scale, "a scale per expert"),
        (rule.scores != "float32" and rule.score != "logits", "scores in the model's dtype"),
    )
    return next((reason for beyond, reason in limits if beyond), None)


def dense_pays(rule: GateRule) -> bool:
    """Whether the fused exact gate is worth attaching: large batches must be able to take the library's product."""
    return rule.experts <= MAX_ONE_LAUNCH or rule.linear != "float32"


def rule_numbers(rule: GateRule, round_to: str = "float32") -> dict[str, float]:
    """The rule as the native core reads it; logits are rounded to the dtype named `round_to`."""
    weight = rule.weight if rule.weight in WEIGHTS else "score"
    return {
        "experts": rule.experts,
        "top_k": rule.top_k,
        "score": SCORES.index(rule.score),
        "weight": WEIGHTS.index(weight),
        "groups": rule.groups,
        "groups_kept": rule.groups_kept,
        "group_max": int(rule.group_score == "max"),
        "group_zero": int(rule.group_fill == "zero"),
        "normalise": int(rule.normalise),
        "round_dtype": DTYPES.index(round_to),
        "normalise_eps": rule.normalise_eps,
        "normalise_min": rule.normalise_min,
        "scale": rule.scale,
    }


def arrays_of(geometry: Geometry) -> tuple[Floats, Floats, Floats, Floats, Floats]:
    """The arrays that native GPU routers take by position."""
    return geometry.mean, geometry.projection, geometry.centres, geometry.colour, geometry.beta


def options_of(geometry: Geometry, bvh: Bvh | None, choice_bias: Floats | None) -> dict[str, Any]:
    """The arrays that they take by name, each optional."""
    return {
        "common": geometry.common,
        "choice_bias": choice_bias,
        "first": bvh.first if bvh else None,
        "count": bvh.count if bvh else None,
        "experts": bvh.experts if bvh else None,
    }


def native_router(
    geometry: Geometry,
    rule: GateRule,
    bvh: Bvh | None,
    choice_bias: Floats | None,
    *,
    device: int = 0,
    round_to: str = "float32",
) -> Any:
    """`_native.CudaRouter` with the layer's arrays on a device; exact logits are rounded to `round_to`."""
    if _native is None:
        raise InternalError("cuda", found="no native core", remedy="ask unavailable() first")
    numbers = rule_numbers(rule, round_to)
    return _native.CudaRouter(device, numbers, *arrays_of(geometry), **options_of(geometry, bvh, choice_bias))


def native_gate(*arguments: Any) -> Any:
    """`_native.CudaGate` with these arguments."""
    if _native is None:
        raise InternalError("cuda", found="no native core", remedy="ask unavailable() first")
    return _native.CudaGate(*arguments)


class Engine:
    """One layer on the GPU, for arrays in host memory; keeps its arrays on the device."""

    def __init__(
        self,
        geometry: Geometry,
        rule: GateRule,
        bvh: Bvh | None,
        *,
        choice_bias: Floats | None,
        threads: int | None,
    ) -> None:
        del threads
        self.geometry, self.rule, self.choice_bias = geometry, rule, choice_bias
        self.native = self._make(bvh)

    def _make(self, bvh: Bvh | None) -> Any:
        return native_router(self.geometry, self.rule, bvh, self.choice_bias)

    def _route(self, hidden: Floats, count: int) -> tuple[Ints, Floats]:
        ids, scores = self.native.route(hidden, count)
        return ids, scores

    def scores(self, hidden: Floats) -> Floats:
        """Approximate logits float32 [T, E] of hidden states float32 [T, D]."""
        found: Floats = self.native.scores(hidden)
        return found

    def candidates(self, hidden: Floats, count: int) -> tuple[Ints, Floats]:
        """Ids int32 [T, C] and choice scores float32 [T, C] of hidden states float32 [T, D]."""
        if count <= MAX_CANDIDATES:
            return self._route(hidden, count)
        logits = self.scores(hidden)  # more than a warp can list: the host sorts
        if self.geometry.common is not None:
            logits = np.asarray(logits - ((hidden - self.geometry.mean) @ self.geometry.common)[:, None])
        return reference.best(reference.choice_scores(self.rule, logits, self.choice_bias), count)
