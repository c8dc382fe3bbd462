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
