"""Types of the native core; array shapes in comments, in the order of plugins/bindings."""

from typing import Literal, TypedDict

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Ints = NDArray[np.int32]

__version__: str

# bind_bvh.cpp

class BvhArrays(TypedDict):
    lower: Floats  # [N, R]
    upper: Floats  # [N, R]
    power: Floats  # [N, L]
    beta: Floats  # [N]
    choice_bias: Floats  # [N]
    first: Ints  # [N]
    count: Ints  # [N]
    experts: Ints  # [E]

def build_bvh(
    centres: Floats,  # [L, E, 3]
    colour: Floats,  # [E, S]
    beta: Floats,  # [E]
    *,
    choice_bias: Floats | None = None,  # [E]
    query_scale: Floats | None = None,  # [R]
    leaf_size: int = 16,
    threads: int = 0,
) -> BvhArrays: ...

# bind_router.cpp

def available_simd() -> list[str]: ...

class RouteStatistics:
    @property
    def nodes(self) -> int: ...
    @property
    def leaves(self) -> int: ...
    @property
    def searched(self) -> int: ...
    @property
    def scanned(self) -> int: ...

class CpuRouter:
    def __init__(
        self,
        mean: Floats,  # [D]
        projection: Floats,  # [R, D]
        centres: Floats,  # [L, E, 3]
        colour: Floats,  # [E, S]
        beta: Floats,  # [E]
        *,
        common: Floats | None = None,  # [D]
        choice_bias: Floats | None = None,  # [E]
        first: Ints | None = None,  # [N]
        count: Ints | None = None,  # [N]
        experts: Ints | None = None,  # [E]
        choice: Literal["identity", "sigmoid", "sqrtsoftplus"] = "identity",
        threads: int = 0,
        simd: str = "auto",
    ) -> None: ...
    def scores(self, hidden: Floats) -> Floats: ...  # [T, D] -> [T, E]
    def route(
        self, hidden: Floats, count: int, *, method: Literal["auto", "scan", "search"] = "auto"
    ) -> tuple[Ints, Floats, RouteStatistics]: ...  # [T, D] -> [T, C], [T, C]
    def route_points(
        self, points: Floats, count: int, *, method: Literal["auto", "scan", "search"] = "auto"
    ) -> tuple[Ints, Floats, RouteStatistics]: ...  # [T, R] -> [T, C], [T, C]
    @property
    def simd(self) -> str: ...
    @property
    def has_tree(self) -> bool: ...

# bind_cuda.cpp: device addresses and the stream are integers; dtypes are indices of cuda.DTYPES

def cuda_absent() -> str: ...

Splits = tuple[int, int]  # tile tokens, blocks of a cluster; 0 means chosen

class CudaGate:
    def __init__(
        self,
        device: int,
        rule: dict[str, float],
        weight: int,  # [P * E, D]
        dtype: int,
        planes: int,
        hidden: int,
        bias: int,  # float32 [E] or 0
        choice_bias: int,  # float32 [E] or 0
    ) -> None: ...
    def run(
        self,
        x: int,  # [T, D]
        stride: int,
        tokens: int,
        x_dtype: int,
        ids: int,  # [T, K]
        wide: bool,
        weights: int,  # [T, K] or 0
        weights_dtype: int,
        logits: int,  # [T, E] or 0
        logits_dtype: int,
        stream: int,
        splits: Splits = (0, 0),
    ) -> None: ...
    def pick(  # what the rule makes of finished logits
        self,
        logits: int,  # [T, E]
        stride: int,
        tokens: int,
        dtype: int,
        ids: int,  # [T, K]
        wide: bool,
        weights: int,  # [T, K]
        weights_dtype: int,
        stream: int,
    ) -> None: ...
    def fuses(self, tokens: int) -> bool: ...  # whether one launch does it all at this size

class CudaRouter:
    def __init__(
        self,
        device: int,
        rule: dict[str, float],
        mean: Floats,  # [D]
        projection: Floats,  # [R, D]
        centres: Floats,  # [L, E, 3]
        colour: Floats,  # [E, S]
        beta: Floats,  # [E]
        *,
        common: Floats | None = None,  # [D]
        choice_bias: Floats | None = None,  # [E]
        first: Ints | None = None,  # [N]
        count: Ints | None = None,  # [N]
        experts: Ints | None = None,  # [E]
    ) -> None: ...
    def candidates(
        self,
        x: int,  # [T, D]
        stride: int,
        tokens: int,
        x_dtype: int,
        count: int,
        ids: int,  # [T, C], or [T, K] with weights
        wide: bool,
        scores: int,  # float32 [T, C] or 0
        weights: int,  # float32 [T, K] or 0
        method: Literal["auto", "scan", "search"],
        gate: int,  # [E, D] or 0
        gate_dtype: int,
        bias: int,  # float32 [E] or 0
        stream: int,
        splits: Splits = (0, 0),
    ) -> None: ...
    def select(
        self,
        x: int,  # [T, D]
        stride: int,
        tokens: int,
        x_dtype: int,
        ids: int,  # [T, K]
        wide: bool,
        weights: int,  # [T, K]
        weights_dtype: int,
        logits: int,  # [T, E] or 0
        logits_dtype: int,
        gate: int,  # [E, D] or 0
        gate_dtype: int,
        bias: int,  # float32 [E] or 0
        spread: int,  # float32 [E] or 0
        candidates: int,
        stream: int,
        splits: Splits = (0, 0),
    ) -> None: ...
    def route(
        self, hidden: Floats, count: int, *, method: Literal["auto", "scan", "search"] = "auto"
    ) -> tuple[Ints, Floats]: ...  # [T, D] -> [T, C], [T, C]
    def scores(self, hidden: Floats) -> Floats: ...  # [T, D] -> [T, E]
    @property
    def has_tree(self) -> bool: ...
    @property
    def device(self) -> int: ...

# bind_optix.cpp

def optix_absent() -> str: ...

class OptixRouter:
    def __init__(
        self,
        device: int,
        rule: dict[str, float],
        mean: Floats,  # [D]
        projection: Floats,  # [R, D]
        centres: Floats,  # [L, E, 3]
        colour: Floats,  # [E, S]
        beta: Floats,  # [E]
        *,
        common: Floats | None = None,  # [D]
        choice_bias: Floats | None = None,  # [E]
        first: Ints | None = None,  # [N]
        count: Ints | None = None,  # [N]
        experts: Ints | None = None,  # [E]
    ) -> None: ...
    def candidates(  # whether rays were traced; not inside a capture
        self,
        x: int,  # [T, D]
        stride: int,
        tokens: int,
        x_dtype: int,
        count: int,
        ids: int,  # [T, C]
        wide: bool,
        scores: int,  # float32 [T, C] or 0
        weights: int,  # float32 [T, C] or 0
        work: int,  # int32 [T, 2] or 0
        stream: int,
        spread: int = 0,  # threads a token; 0 means chosen
    ) -> bool: ...
    def route(self, hidden: Floats, count: int) -> tuple[Ints, Floats, Ints]: ...  # [T, C], [T, C], [T, 2]
    def scores(self, hidden: Floats) -> Floats: ...  # [T, D] -> [T, E]
    @property
    def facts(self) -> dict[str, int]: ...
