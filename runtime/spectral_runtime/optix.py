"""The OptiX back-end of `Router`: spheres of level 1 traversed by rays, everything else scored where a ray meets them.

It has been run on a GPU without ray-tracing cores only, where traversal is software: `facts()["rtcore_version"]`
is 0 there. CUDA graphs cannot hold rays (a captured launch does nothing when replayed), so the CUDA back-end
answers inside a capture.
"""

from __future__ import annotations

from typing import Any

from spectral_runtime import cuda
from spectral_runtime.errors import InternalError
from spectral_runtime.gate import GateRule
from spectral_runtime.geometry import Bvh, Floats, Geometry, Ints

try:
    from spectral_runtime import _native
except ImportError:  # a source tree without a compiler: the CUDA back-end says so
    _native = None  # type: ignore[assignment]

MAX_CANDIDATES = cuda.MAX_CANDIDATES
"""C of one launch: what a ray keeps in its own memory."""


def unavailable() -> str | None:
    """The reason why this back-end cannot run here, or None."""
    reason = cuda.unavailable()
    if reason is not None:
        return reason
    if not hasattr(_native, "optix_absent"):
        return "the native core is older than this back-end; install again"
    return _native.optix_absent() or None


def native_router(
    geometry: Geometry, rule: GateRule, bvh: Bvh | None, choice_bias: Floats | None, *, device: int = 0
) -> Any:
    """`_native.OptixRouter` with the layer's spheres on a device, and its CUDA twin."""
    if _native is None:
        raise InternalError("optix", found="no native core", remedy="ask unavailable() first")
    arrays, options = cuda.arrays_of(geometry), cuda.options_of(geometry, bvh, choice_bias)
    return _native.OptixRouter(device, cuda.rule_numbers(rule), *arrays, **options)


class Engine(cuda.Engine):
    """One layer on the GPU, for arrays in host memory; the tree serves the CUDA twin alone."""

    def _make(self, bvh: Bvh | None) -> Any:
        return native_router(self.geometry, self.rule, bvh, self.choice_bias)

    def _route(self, hidden: Floats, count: int) -> tuple[Ints, Floats]:
        ids, scores, _ = self.native.route(hidden, count)
        return ids, scores

    def work(self, hidden: Floats, count: int) -> Ints:
        """What each token cost: int32 [T, 2] experts scored, and structures traversed (-1: experts were scanned)."""
        found: Ints = self.native.route(hidden, count)[2]
        return found

    def facts(self) -> dict[str, int]:
        """ABI version, RTCORE_VERSION (0: no ray-tracing cores), acceleration structures and their bytes."""
        return dict(self.native.facts)
