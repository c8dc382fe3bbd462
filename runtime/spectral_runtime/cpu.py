"""The CPU back-end of `Router`: thin over the native scan and search."""

from __future__ import annotations

from typing import Literal

from spectral_runtime.errors import InternalError
from spectral_runtime.gate import GateRule
from spectral_runtime.geometry import Bvh, Floats, Geometry, Ints

try:
    from spectral_runtime import _native
except ImportError as error:  # a source tree without a compiler
    _native = None  # type: ignore[assignment]
    _REASON: str | None = f"the native core is not built ({error})"
else:
    _REASON = None

CHOICES: dict[str, Literal["identity", "sigmoid", "sqrtsoftplus"]] = {
    "softmax": "identity",
    "logits": "identity",
    "sigmoid": "sigmoid",
    "sqrtsoftplus": "sqrtsoftplus",
}
"""The native choice rule of every monotone gate score."""


def unavailable() -> str | None:
    """The reason why this back-end cannot run here, or None."""
    return _REASON


class Engine:
    """One layer on the CPU; copies the arrays it needs."""

    def __init__(
        self,
        geometry: Geometry,
        rule: GateRule,
        bvh: Bvh | None,
        *,
        choice_bias: Floats | None,
        threads: int | None,
    ) -> None:
        if _native is None:
            raise InternalError("cpu.Engine", found="no native core", remedy="ask unavailable() first")
        self.native = _native.CpuRouter(
            geometry.mean,
            geometry.projection,
            geometry.centres,
            geometry.colour,
            geometry.beta,
            common=geometry.common,
            choice_bias=choice_bias,
            first=bvh.first if bvh else None,
            count=bvh.count if bvh else None,
            experts=bvh.experts if bvh else None,
            choice=CHOICES[rule.score],
            threads=threads or 0,
        )

    def scores(self, hidden: Floats) -> Floats:
        """Approximate logits float32 [T, E] of hidden states float32 [T, D]."""
        return self.native.scores(hidden)

    def candidates(self, hidden: Floats, count: int) -> tuple[Ints, Floats]:
        """Ids int32 [T, C] and choice scores float32 [T, C] of hidden states float32 [T, D]."""
        ids, scores, _ = self.native.route(hidden, count)
        return ids, scores
