"""Routes hidden states through the geometry of one layer on a chosen back-end."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from spectral_runtime import backends, reference
from spectral_runtime.errors import ConfigError
from spectral_runtime.gate import GateRule
from spectral_runtime.geometry import Bvh, Floats, Geometry, Ints


class Router:
    """The geometric router of one layer.

    Args:
        geometry: projections, spheres and colour.
        rule: the family's gate rule.
        bvh: the tree; without it every call scans all experts.
        choice_bias: float32 [E], needed if the rule has one.
        backend: a name of `backends.BACKENDS`, or "auto".
        threads: of the CPU back-end; None means one per core.

    Raises:
        BackendUnavailable: the back-end cannot run here; the message says why.
        ConfigError: arrays, rule and bias do not fit one another, or an unknown back-end.
    """

    def __init__(
        self,
        geometry: Geometry,
        rule: GateRule,
        bvh: Bvh | None = None,
        *,
        choice_bias: Floats | None = None,
        backend: str = "auto",
        threads: int | None = None,
    ) -> None:
        _check(geometry, rule, choice_bias, threads)
        module = backends.choose(backend)
        self.geometry, self.rule, self.choice_bias = geometry, rule, choice_bias
        self.backend = module.__name__.rpartition(".")[2]
        # A bias after a softmax, or a common mode under a sigmoid, needs all scores of a token: no search.
        self._separable = reference.separable(rule, geometry, choice_bias)
        engine_bias = choice_bias if self._separable else None
        self._engine: backends.Engine = module.Engine(
            geometry, rule, bvh if self._separable else None, choice_bias=engine_bias, threads=threads
        )

    def scores(self, hidden: ArrayLike) -> Floats:
        """Approximate logits float32 [T, E] of hidden states [T, D], the common mode included."""
        return self._engine.scores(self._hidden(hidden))

    def candidates(self, hidden: ArrayLike, count: int) -> tuple[Ints, Floats]:
        """The best `count` experts of every token.

        Args:
            hidden: [T, D], converted to float32; a row with NaN ranks experts by id.
            count: C, 1 to E.

        Returns:
            ids int32 [T, C] by descending choice score (ties by smaller id, NaN last), and float32 [T, C]
            these scores: `score(z~) + choice_bias`; a softmax without bias ranks by z~ without common mode.

        Raises:
            ConfigError: C out of range, or hidden states of another shape.
        """
        if not 1 <= count <= self.geometry.experts:
            expected = f"1 to {self.geometry.experts} (the experts)"
            raise ConfigError("candidates.count", expected=expected, found=str(count))
        states = self._hidden(hidden)
        if self._separable:
            return self._engine.candidates(states, count)
        logits = self._engine.scores(states)
        return reference.best(reference.choice_scores(self.rule, logits, self.choice_bias), count)

    def _hidden(self, hidden: ArrayLike) -> Floats:
        states = np.ascontiguousarray(hidden, dtype=np.float32)
        width = self.geometry.mean.shape[0]
        if states.ndim != 2 or states.shape[1] != width:
            raise ConfigError("hidden", expected=f"shape [T, {width}]", found=str(list(states.shape)))
        return states


def _check(geometry: Geometry, rule: GateRule, choice_bias: Floats | None, threads: int | None) -> None:
    if rule.experts != geometry.experts:
        expected = f"{rule.experts} experts, as the rule"
        raise ConfigError("geometry", expected=expected, found=f"{geometry.experts}")
    if rule.choice_bias and choice_bias is None:
        raise ConfigError(
            "choice_bias", expected=f"float32 [{rule.experts}], the rule has one", found="nothing"
        )
    if not rule.choice_bias and choice_bias is not None:
        raise ConfigError("choice_bias", expected="nothing, the rule has none", found="an array")
    if threads is not None and threads < 1:
        raise ConfigError("threads", expected="at least 1", found=str(threads))
