"""The arms of the routing benchmark: bf16 hidden states in, int ids and float32 weights out, projection included."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from spectral_runtime import cuda, optix
from spectral_runtime.attaching import operators
from spectral_runtime.bvh import build_bvh
from spectral_runtime.gate import GateRule
from spectral_runtime.geometry import Bvh, Geometry

HIDDEN, TOP_K = 2048, 8
Route = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True, slots=True)
class Planted:
    """A gate whose logits a geometric router of `levels` levels can represent, up to noise and bf16."""

    experts: int
    levels: int
    weight: torch.Tensor
    """bf16 [E, D]."""
    projection: torch.Tensor
    """float32 [3L, D]."""
    centres: torch.Tensor
    """float32 [L, E, 3]."""
    beta: torch.Tensor
    """float32 [E]."""
    geometry: Geometry
    bvh: Bvh | None

    @property
    def rule(self) -> GateRule:
        """Softmax over all, K renormalised: the common rule."""
        return GateRule(experts=self.experts, top_k=min(TOP_K, self.experts), normalise=True)


def mixture(tokens: int, levels: int, generator: torch.Generator) -> torch.Tensor:
    """Points float32 [T, L, 3] of 64 clusters, the same for every seed; each level 0.7 times the one before."""
    fixed = torch.Generator(device="cuda").manual_seed(11)
    middles = torch.randn(64, levels, 3, generator=fixed, device="cuda")
    chosen = middles[torch.randint(64, (tokens,), generator=generator, device="cuda")]
    points = chosen + 0.35 * torch.randn(tokens, levels, 3, generator=generator, device="cuda")
    return points * (0.7 ** torch.arange(levels, device="cuda")).view(1, -1, 1)


def plant(experts: int, levels: int, seed: int = 0) -> Planted:
    """Clustered centres c; gate rows `2 sum_l c_l P_l` plus noise, and `-sum_l |c_l|^2` in column 0, where x is 1.

    The exact logit is then minus the squared distance to the centres up to what a token adds to all experts: the
    gate of a router that was trained as geometry. Everything is rounded to bfloat16 as a checkpoint would be.
    """
    generator = torch.Generator(device="cuda").manual_seed(seed + experts + levels)
    basis = torch.linalg.qr(torch.randn(HIDDEN - 1, 3 * levels, generator=generator, device="cuda"))[0]
    projection = functional.pad(basis.T, (1, 0)).contiguous()
    centres = mixture(experts, levels, generator)
    beta = -centres.square().sum(dim=(1, 2)).bfloat16().float()
    weight = torch.empty(experts, HIDDEN, dtype=torch.bfloat16, device="cuda")
    for part in range(0, experts, 65_536):  # the float32 rows of a million experts do not fit beside the rest
        rows = slice(part, part + 65_536)
        noise = (
            0.003 * torch.randn(len(centres[rows]), HIDDEN, generator=generator, device="cuda") / HIDDEN**0.5
        )
        weight[rows] = (2.0 * centres[rows].flatten(1) @ projection + noise).bfloat16()
    weight[:, 0] = beta.bfloat16()
    zeros = np.zeros(experts, np.float32)
    geometry = Geometry(
        mean=np.zeros(HIDDEN, np.float32),
        projection=projection.cpu().numpy(),
        centres=centres.transpose(0, 1).contiguous().cpu().numpy(),
        colour=np.zeros((experts, 0), np.float32),
        beta=beta.cpu().numpy(),
        residual=zeros,
        spread=zeros,
    )
    bvh = build_bvh(geometry) if experts >= 64 else None
    return Planted(
        experts, levels, weight, projection, centres.transpose(0, 1).contiguous(), beta, geometry, bvh
    )


def hidden_states(planted: Planted, tokens: int, seed: int) -> torch.Tensor:
    """bf16 [T, D]: points of the same mixture, noise in the other directions, 1 in column 0."""
    generator = torch.Generator(device="cuda").manual_seed(1000 + seed)
    points = mixture(tokens, planted.levels, generator).flatten(1)
    noise = torch.randn(tokens, HIDDEN, generator=generator, device="cuda") * 0.1
    noise -= (noise @ planted.projection.T) @ planted.projection
    x = points @ planted.projection + noise
    x[:, 0] = 1.0
    return x.bfloat16()


# ---- exact peers ---------------------------------------------------------------------------------


def transformers_gate(planted: Planted) -> Route:
    """What the families' own code does: linear, float32 softmax, top-k, renormalisation."""

    def route(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        scores = functional.softmax(functional.linear(x, planted.weight), dim=-1, dtype=torch.float32)
        weights, ids = scores.topk(planted.rule.top_k, dim=-1)
        return ids, weights / weights.sum(dim=-1, keepdim=True)

    return route


def matrix_and_topk(planted: Planted) -> Route:
    """cuBLAS, then top-k of the logits, then a softmax of the K: the cheapest chain of library calls."""

    def route(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        values, ids = functional.linear(x, planted.weight).topk(planted.rule.top_k, dim=-1)
        return ids, functional.softmax(values, dim=-1, dtype=torch.float32)

    return route


def matrix_and_fused_topk(planted: Planted) -> Route:
    """cuBLAS, then one Triton kernel for softmax, top-k and renormalisation (E up to 1 024)."""
    from spectral_convert.triton_topk import softmax_topk

    return lambda x: softmax_topk(functional.linear(x, planted.weight), planted.rule.top_k)


def peer_topk(planted: Planted) -> Route | None:
    """cuBLAS, then SGLang's fused CUDA top-k; None where its operators are not loaded (`load_peers`)."""
    if not hasattr(torch.ops.sgl_kernel, "topk_softmax"):
        return None

    def route(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits = functional.linear(x, planted.weight)
        weights = torch.empty(len(x), planted.rule.top_k, device="cuda")
        ids = torch.empty(len(x), planted.rule.top_k, device="cuda", dtype=torch.int32)
        torch.ops.sgl_kernel.topk_softmax.default(weights, ids, logits, True, 0.0, None)
        return ids, weights

    return route


def load_peers(folder: str | None) -> None:
    """Loads the operator libraries (`*.so`) of other projects from a folder, as far as they load here."""
    for library in sorted(Path(folder).rglob("*.so")) if folder else ():
        with contextlib.suppress(OSError, RuntimeError):
            torch.ops.load_library(str(library))  # type: ignore[no-untyped-call]


def peer_found(name: str) -> str:
    """The version of another project's package, "operators loaded" (`load_peers`), or why it cannot be imported here."""
    try:
        return str(getattr(importlib.import_module(name), "__version__", "imported"))
    except (ImportError, OSError, RuntimeError) as error:
        loaded = name == "sgl_kernel" and hasattr(torch.ops.sgl_kernel, "topk_softmax")
        return "operators loaded" if loaded else f"not importable here: {error}"


# ---- ours ----------------------------------------------------------------------------------------


def fused_gate(planted: Planted, plan: tuple[int, int] = (0, 0)) -> Route:
    """The exact gate in one launch."""
    rule, weight = planted.rule, planted.weight
    native = operators.FusedGate(rule, None, None).native(weight, torch.bfloat16)

    def route(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        ids = torch.empty(len(x), rule.top_k, dtype=torch.int32, device="cuda")
        weights = torch.empty(len(x), rule.top_k, device="cuda")
        native.run(
            x.data_ptr(), HIDDEN, len(x), 2, ids.data_ptr(), False, weights.data_ptr(), 0, 0, 0,
            operators.stream_of(x), plan,
        )  # fmt: skip
        return ids, weights

    return route


def split_gate(planted: Planted) -> Route:
    """The exact gate as cuBLAS and our launch for the rule."""
    rule, weight = planted.rule, planted.weight
    native = operators.FusedGate(rule, None, None).native(weight, torch.bfloat16)

    def route(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits = functional.linear(x, weight)
        ids = torch.empty(len(x), rule.top_k, dtype=torch.int32, device="cuda")
        weights = torch.empty(len(x), rule.top_k, device="cuda")
        native.pick(
            logits.data_ptr(), rule.experts, len(x), 2, ids.data_ptr(), False, weights.data_ptr(), 0,
            operators.stream_of(x),
        )  # fmt: skip
        return ids, weights

    return route


def exact_gate(planted: Planted, batch: int) -> Route:
    """The exact gate as `attach` runs it at this batch."""
    native = operators.FusedGate(planted.rule, None, None).native(planted.weight, torch.bfloat16)
    return fused_gate(planted) if native.fuses(batch) else split_gate(planted)


def geometric(planted: Planted, method: str, plan: tuple[int, int] = (0, 0), *, native: Any = None) -> Route:
    """The geometric router in one launch: `scan`, `search` (tree), or `rows` (the whole rule, E up to 1 024)."""
    rule = planted.rule
    router = native or cuda.native_router(planted.geometry, rule, planted.bvh, None)

    def route(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        ids = torch.empty(len(x), rule.top_k, dtype=torch.int32, device="cuda")
        weights = torch.empty(len(x), rule.top_k, device="cuda")
        if method == "rows":
            router.select(
                x.data_ptr(), HIDDEN, len(x), 2, ids.data_ptr(), False, weights.data_ptr(), 0, 0, 0, 0, 0, 0, 0, 0,
                operators.stream_of(x), plan,
            )  # fmt: skip
        else:
            router.candidates(
                x.data_ptr(), HIDDEN, len(x), 2, rule.top_k, ids.data_ptr(), False, 0, weights.data_ptr(), method, 0, 0,
                0, operators.stream_of(x), plan,
            )  # fmt: skip
        return ids, weights

    return route


def optix_router(planted: Planted) -> Any:
    """The native router of the next arm."""
    return optix.native_router(planted.geometry, planted.rule, None, None)


def optix_spheres(planted: Planted, *, native: Any = None, spread: int = 0) -> Route:
    """Rays among the spheres of level 1, the other levels scored on the way; not capturable."""
    rule, router = planted.rule, native or optix_router(planted)

    def route(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        ids = torch.empty(len(x), rule.top_k, dtype=torch.int32, device="cuda")
        weights = torch.empty(len(x), rule.top_k, device="cuda")
        router.candidates(
            x.data_ptr(), HIDDEN, len(x), 2, rule.top_k, ids.data_ptr(), False, 0, weights.data_ptr(), 0,
            operators.stream_of(x), spread,
        )  # fmt: skip
        return ids, weights

    return route


# ---- approximate peers ---------------------------------------------------------------------------


def low_rank(planted: Planted, rank: int = 32) -> Route:
    """Rank-r dense scoring: the planted projection padded with random directions to rank r, then top-k."""
    generator = torch.Generator(device="cuda").manual_seed(5)
    extra = torch.randn(rank - 3 * planted.levels, HIDDEN, generator=generator, device="cuda") / HIDDEN**0.5
    extra[0] = functional.one_hot(torch.tensor(0, device="cuda"), HIDDEN)  # the constant column, for the bias
    down = torch.cat([planted.projection, extra]).bfloat16()
    linear = 2.0 * planted.centres.permute(1, 0, 2).reshape(planted.experts, -1)
    up = functional.pad(torch.cat([linear, planted.beta[:, None]], dim=1), (0, len(extra) - 1)).bfloat16()

    def route(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        values, ids = functional.linear(functional.linear(x, down), up).topk(planted.rule.top_k, dim=-1)
        return ids, functional.softmax(values, dim=-1, dtype=torch.float32)

    return route


def product_keys(planted: Planted, width: int = 256) -> Route:
    """Product keys (Lample et al. 2019): two halves of a query against sqrt(E) keys each, K x K sums, top-k.

    The keys are random: its time is what counts here. On a planted gate that is no sum of two halves its recall
    is that of chance, which is printed.
    """
    side = int(np.ceil(planted.experts**0.5))
    generator = torch.Generator(device="cuda").manual_seed(6)
    query = (torch.randn(width, HIDDEN, generator=generator, device="cuda") / HIDDEN**0.5).bfloat16()
    keys = torch.randn(2, side, width // 2, generator=generator, device="cuda").bfloat16()
    count = min(TOP_K, side)

    def route(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        halves = functional.linear(x, query).view(len(x), 2, width // 2).transpose(0, 1)
        values, ids = torch.bmm(halves, keys.transpose(1, 2)).topk(count, dim=-1)
        sums = (values[0].unsqueeze(2) + values[1].unsqueeze(1)).flatten(1)
        best, places = sums.topk(planted.rule.top_k, dim=-1)
        found = ids[0].gather(1, places // count) * side + ids[1].gather(1, places % count)
        return found.clamp(max=planted.experts - 1), functional.softmax(best, dim=-1, dtype=torch.float32)

    return route


def cupy_tree(planted: Planted) -> Route | None:
    """CuPy's k-d tree on the points of level 1 (nearest centre); None where CuPy is absent."""
    try:
        import cupy  # type: ignore[import-not-found, unused-ignore]
        from cupyx.scipy.spatial import KDTree  # type: ignore[import-not-found, unused-ignore]
    except ImportError:
        return None
    tree = KDTree(cupy.asarray(planted.centres[0].contiguous()))

    def route(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        points = functional.linear(
            x.float(), planted.projection[:3]
        ).contiguous()  # torch has no bf16 in CuPy
        distances, ids = tree.query(cupy.asarray(points), k=planted.rule.top_k)
        return torch.as_tensor(ids, device="cuda"), torch.as_tensor(distances, device="cuda").float()

    return route
