"""The TensorRT plugin on a GPU: real lean runtime, device pointers, eager and captured, against numpy.

Here:   python tests/benchmarks/gpu_tensorrt.py prepare FOLDER --plugin libspectral_trt.so
There:  python tests/benchmarks/gpu_tensorrt.py run FOLDER --out FILE    (numpy, torch; with tensorrt_lean its registry, too)
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.util
import itertools
import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
import tensorrt_calls as trt_calls
from route_cases import ARRAYS, MODES, RULES, TOKENS

SIZES = ((64, 256, 8, 16), (4096, 64, 8, 32))
"""Experts, hidden, K, C."""
TACTICS = {1: "cuda", 2: "optix"}
"""Rays are offered for the prefilter cases that rank experts alone; their replays are the CUDA tactic's."""


def prepare(folder: Path, plugin: Path) -> None:
    """Cases with their answers, the plugin, and the harness as a compiled library."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(plugin, folder / "libspectral_trt.so")
    assert trt_calls.compile_harness(folder) is not None
    rng = np.random.default_rng(0)
    cases: dict[str, np.ndarray] = {}
    names = []
    for (experts, hidden, top_k, count), mode, (rule_name, rule) in itertools.product(
        SIZES, MODES, RULES.items()
    ):
        if experts > 64 and (rule_name != "softmax" or mode == "geometric"):
            continue
        name = f"{mode}.{rule_name}.{experts}"
        attributes, arrays, states, ids, weights = _case(rng, (experts, hidden, top_k, count), mode, rule)
        names.append(name)
        cases |= {f"{name}/{key}": value for key, value in arrays.items()}
        cases |= {f"{name}/hidden": states, f"{name}/ids": ids, f"{name}/weights": weights}
        cases[f"{name}/attributes"] = np.array(json.dumps(attributes))
    np.savez(folder / "cases.npz", names=np.array(names), **cases)


def _case(rng: np.random.Generator, sizes: tuple[int, int, int, int], mode: str, rule: dict[str, Any]) -> Any:
    from pico_bundles import make_layer

    from spectral_convert.export.routes import make_route

    experts, hidden, top_k, count = sizes
    layer = make_layer(
        rng, experts=experts, hidden=hidden, levels=4, colour=2, top_k=top_k, candidates=count, gate_rows=True,
        rule=rule,
    )  # fmt: skip
    layer.geometry.projection[:] /= np.float32(4 * hidden)
    gate = layer.gate_weight / np.float32(hidden**0.5), layer.gate_bias
    route = make_route(layer, mode=mode, candidates=count, gate=gate, choice_bias=layer.choice_bias)  # type: ignore[arg-type]
    states = (layer.geometry.mean + 0.25 * rng.standard_normal((max(TOKENS), hidden))).astype(np.float32)
    ids, weights = _answer(layer, gate, mode, states)
    return route.attributes(), {name: route.arrays[name] for name in ARRAYS}, states, ids, weights


def _answer(layer: Any, gate: Any, mode: str, states: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    from spectral_runtime.gate import expert_scores, select_experts, top_ids
    from spectral_runtime.reference import scores

    rule, geometry, bias = layer.entry.rule, layer.geometry, layer.choice_bias
    exact = states @ gate[0].T + gate[1]
    if mode == "dense":
        return select_experts(rule, exact, bias)
    rough = scores(geometry, states)
    if mode == "geometric":
        return select_experts(rule, rough, bias)
    choice = expert_scores(rule, rough + geometry.spread) + (0 if bias is None else bias)
    mask = np.zeros(choice.shape, bool)
    np.put_along_axis(mask, top_ids(choice, layer.entry.candidates).astype(np.int64), True, axis=1)
    logits = np.where(mask, exact, rough + geometry.spread**2 / 2).astype(np.float32)
    return select_experts(rule, logits, bias, mask)


def run(folder: Path, out: Path) -> None:
    """Every case in three types, eager and replayed; the real registry first."""
    import torch

    record: dict[str, Any] = {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__, "cases": []}
    torch.cuda.init()
    torch.zeros(1, device="cuda")
    record["runtime"] = _real_runtime(str(folder / "libspectral_trt.so"))
    calls = trt_calls.loaded_harness(folder / "harness.so")
    creator = calls.open_creator(str(folder / "libspectral_trt.so").encode())
    cases = np.load(folder / "cases.npz", allow_pickle=False)
    for name in cases["names"]:
        for dtype in ("float32", "float16", "bfloat16"):
            for tactic in TACTICS:
                found = _check(calls, creator, cases, (str(name), dtype), tactic)
                record["cases"] += [] if found is None else [found]
                print(found, flush=True)
    record["passed"] = all(case["passed"] for case in record["cases"])
    out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print("passed" if record["passed"] else "FAILED", len(record["cases"]), "cases")


def _real_runtime(plugin: str) -> dict[str, Any] | None:
    if importlib.util.find_spec("tensorrt_lean_bindings") is None:
        return None
    trt = importlib.import_module("tensorrt_lean_bindings")
    registry = trt.get_plugin_registry()
    registry.load_library(plugin)
    creator = registry.get_creator("BvhRoute", "1", "spectral")
    runtime = trt.Runtime(trt.Logger(trt.Logger.WARNING))
    return {"version": trt.__version__, "creator": type(creator).__name__, "runtime": type(runtime).__name__}


class Buffers:
    """Device tensors of one case in one type, and the argument list of `enqueue`."""

    def __init__(self, cases: Any, name: str, dtype: str, tokens: int) -> None:
        import torch

        kind = getattr(torch, dtype)
        self.arrays = [torch.tensor(cases[f"{name}/{key}"], device="cuda") for key in ARRAYS]
        self.arrays[5], self.arrays[6] = self.arrays[5].to(kind), self.arrays[6].to(kind)
        self.hidden = torch.tensor(cases[f"{name}/hidden"][:tokens], device="cuda").to(kind)
        top_k = cases[f"{name}/ids"].shape[1]
        self.ids = torch.full((tokens, top_k), -1, dtype=torch.int32, device="cuda")
        self.weights = torch.zeros((tokens, top_k), dtype=kind, device="cuda")
        self.workspace: Any = None

    def pointers(self) -> tuple[Any, Any]:
        inputs = [self.hidden, *self.arrays]
        both = ([t.data_ptr() for t in inputs], [self.ids.data_ptr(), self.weights.data_ptr()])
        return tuple((ctypes.c_void_p * len(part))(*part) for part in both)  # type: ignore[return-value]


def _check(calls: Any, creator: int, cases: Any, case: tuple[str, str], tactic: int) -> dict[str, Any] | None:
    import torch

    name, dtype = case
    attributes = json.loads(str(cases[f"{name}/attributes"]))
    built = trt_calls.make(calls, creator, attributes)
    if str(tactic) not in str(calls.tactics(built.handle)):
        return None
    revived = trt_calls.revive(calls, creator, built.serial())
    assert calls.set_tactic(revived.handle, tactic) == 0
    plugin = revived.attached()
    types = plugin.types(dtype)
    found: dict[str, Any] = {"case": name, "dtype": dtype, "tactic": TACTICS[tactic]}
    shares, errors, same = [], [], True
    for tokens in TOKENS:
        buffers = Buffers(cases, name, dtype, tokens)
        bytes_ = calls.workspace_bytes(
            plugin.handle, types, ctypes.c_int64(tokens), ctypes.c_int64(buffers.hidden.shape[1])
        )
        buffers.workspace = torch.empty(bytes_, dtype=torch.uint8, device="cuda")
        stream = torch.cuda.Stream()
        launch = _launcher(calls, plugin, types, buffers)
        assert launch(stream.cuda_stream) == 0
        stream.synchronize()
        eager = buffers.ids.clone(), buffers.weights.clone()
        wanted = cases[f"{name}/ids"][:tokens]
        mine = buffers.ids.cpu().numpy()
        shares.append(float((np.sort(mine, 1) == np.sort(wanted, 1)).mean()))
        rows = (mine == wanted).all(1)
        gap = np.abs(buffers.weights.float().cpu().numpy() - cases[f"{name}/weights"][:tokens])[rows]
        errors.append(float(gap.max()) if gap.size else 0.0)
        same = same and _replayed(launch, buffers, eager)
        if tokens == max(TOKENS) or tokens == 1:
            found[f"replay_us_{tokens}"] = _replay_time(launch)
            found[f"eager_us_{tokens}"] = _eager_time(launch)
    found |= {"same_ids": shares, "weight_error": errors, "replay_equals_eager": same}
    found["passed"] = judge(found)
    return found


LIMITS = {"float32": (0.9995, 2e-4), "float16": (0.97, 2e-2), "bfloat16": (0.8, 0.15)}
"""Least share of equal ids, largest weight error. The answers are those of float32 states: the 16-bit types round
states and gate rows, which moves near ties."""


def judge(found: dict[str, Any]) -> bool:
    """Whether a case passed. A sparsemixer weighs by a threshold, which rounding can cross: 16 bits, ids only."""
    share, error = LIMITS[found["dtype"]]
    crossed = "sparsemixer" in found["case"] and found["dtype"] != "float32"
    exact_enough = crossed or max(found["weight_error"]) <= error
    return bool(found["replay_equals_eager"] and min(found["same_ids"]) >= share and exact_enough)


def _launcher(calls: Any, plugin: Any, types: Any, buffers: Buffers) -> Any:
    inputs, outputs = buffers.pointers()
    tokens, width = (ctypes.c_int64(n) for n in buffers.hidden.shape)
    scratch = ctypes.c_void_p(buffers.workspace.data_ptr())

    def launch(stream: int) -> int:
        handle = ctypes.c_void_p(stream)
        return int(calls.enqueue(plugin.handle, types, tokens, width, inputs, outputs, scratch, handle))

    return launch


def _graph(launch: Any) -> Any:
    import torch

    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        assert launch(torch.cuda.current_stream().cuda_stream) == 0
    return graph


def _replayed(launch: Any, buffers: Buffers, eager: Any) -> bool:
    import torch

    graph = _graph(launch)
    buffers.ids.fill_(-1)
    buffers.weights.zero_()
    graph.replay()
    torch.cuda.synchronize()
    return bool(torch.equal(buffers.ids, eager[0]) and torch.equal(buffers.weights, eager[1]))


def _replay_time(launch: Any) -> float:
    import torch

    graph = _graph(launch)
    graph.replay()
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(20):
        graph.replay()
    torch.cuda.synchronize()
    return round((time.perf_counter() - start) / 20 * 1e6, 1)


def _eager_time(launch: Any) -> float:
    import torch

    stream = torch.cuda.current_stream()
    start = time.perf_counter()
    for _ in range(20):
        launch(stream.cuda_stream)
    stream.synchronize()
    return round((time.perf_counter() - start) / 20 * 1e6, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("verb", choices=["prepare", "run"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--plugin", type=Path)
    parser.add_argument("--out", type=Path, default=Path("tests/benchmarks/evidence/tensorrt_gpu.json"))
    arguments = parser.parse_args()
    if arguments.verb == "prepare":
        prepare(arguments.folder, arguments.plugin)
    else:
        run(arguments.folder, arguments.out)


if __name__ == "__main__":
    main()
