"""The operator of ONNX Runtime's CUDA provider on a GPU: a played runtime's pointers and stream, the CPU operator's answers.

Here:   python tests/benchmarks/gpu_onnxruntime.py prepare FOLDER
There:  python tests/benchmarks/gpu_onnxruntime.py run FOLDER --out FILE    (needs numpy and torch, onnxruntime if it is there)
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
import ort_calls
from route_cases import ARRAYS, MODES, RULES, TOKENS

SIZES = ((64, 256, 8, 16), (4096, 64, 8, 64))
"""Experts, hidden, K, C."""
CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
LIMITS = {"float32": (0.9995, 2e-4), "float16": (0.98, 4e-3), "bfloat16": (0.98, 3e-2)}
"""Least share of equal ids, largest weight error. Both operators see the same rounded states and gate rows."""


def prepare(folder: Path) -> None:
    """Cases and the library."""
    from pico_bundles import make_layer

    from spectral_convert.export.graphs import routers_model
    from spectral_convert.export.routes import make_route
    from spectral_runtime.onnxruntime import library_path

    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(library_path(), folder / "libspectral_ort.so")
    rng = np.random.default_rng(0)
    cases: dict[str, np.ndarray] = {}
    names = []
    for sizes, mode, (rule_name, rule) in itertools.product(SIZES, MODES, RULES.items()):
        experts, hidden, top_k, count = sizes
        if experts > 64 and rule_name != "softmax":
            continue
        layer = make_layer(
            rng, experts=experts, hidden=hidden, levels=4, colour=2, top_k=top_k, candidates=count, rule=rule,
            gate_rows=True,
        )  # fmt: skip
        layer.geometry.projection[:] /= np.float32(4 * hidden)
        gate = layer.gate_weight / np.float32(hidden**0.5), layer.gate_bias
        route = make_route(layer, mode=mode, candidates=count, gate=gate, choice_bias=layer.choice_bias)  # type: ignore[arg-type]
        states = layer.geometry.mean + 0.25 * rng.standard_normal((max(TOKENS), hidden))
        name = f"{mode}.{rule_name}.{experts}"
        names.append(name)
        cases |= {f"{name}/{key}": route.arrays[key] for key in ARRAYS}
        cases |= {f"{name}/hidden": states.astype(np.float32)}
        cases[f"{name}/attributes"] = np.array(json.dumps(route.attributes()))
        if name == "prefilter.softmax.64":
            (folder / "routers.onnx").write_bytes(routers_model([route]).SerializeToString())
    np.savez(folder / "cases.npz", names=np.array(names), **cases)


def run(folder: Path, out: Path) -> None:
    """Every case in three types; the real ONNX Runtime beside them where it is installed."""
    import torch

    torch.zeros(1, device="cuda")
    played = ort_calls.Played(folder / "libspectral_ort.so")
    record: dict[str, Any] = {
        "gpu": torch.cuda.get_device_name(), "torch": torch.__version__,
        "protocol": "ONNX Runtime's side played by tests/ort_calls.py; answers of the CPU operator on the same values",
        "providers": sorted({played.provider(op) for op in played.ops}),
        "onnxruntime": _real_session(folder), "cases": [],
    }  # fmt: skip
    cases = np.load(folder / "cases.npz", allow_pickle=False)
    for name, dtype in itertools.product(map(str, cases["names"]), LIMITS):
        record["cases"].append(_check(played, cases, name, dtype))
        print(record["cases"][-1], flush=True)
    record["passed"] = all(case["passed"] for case in record["cases"])
    out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print("passed" if record["passed"] else "FAILED", len(record["cases"]), "cases")


def _real_session(folder: Path) -> dict[str, Any] | None:
    """A session of the CPU wheel with both kinds of operators registered: the node must still go to the CPU's."""
    try:
        import onnxruntime as ort
    except ImportError:
        return None
    data = (folder / "routers.onnx").read_bytes()
    options = ort.SessionOptions()
    options.register_custom_ops_library(str(folder / "libspectral_ort.so"))
    states = np.load(folder / "cases.npz")["prefilter.softmax.64/hidden"]
    feeds = {"hidden": states}
    plain = ort.InferenceSession(data, providers=[CPU]).run(None, feeds)
    ours = ort.InferenceSession(data, options, providers=[CPU]).run(None, feeds)
    same = float((plain[0] == ours[0]).mean())
    return {"version": ort.__version__, "available": ort.get_available_providers(), "same_ids": same}


class Node:
    """A node on both providers, its arrays rounded to a type and laid on the GPU."""

    def __init__(self, played: ort_calls.Played, cases: Any, name: str, dtype: str) -> None:
        import torch

        self.torch, self.dtype = torch, getattr(torch, dtype)
        attributes = json.loads(str(cases[f"{name}/attributes"]))
        self.kernel = played.kernel(CUDA, dtype, dtype, attributes)
        self.twin = played.kernel(CPU, "float32", "float32", attributes)
        arrays = [torch.tensor(cases[f"{name}/{key}"]) for key in ARRAYS]
        arrays[5], arrays[6] = arrays[5].to(self.dtype), arrays[6].to(self.dtype)
        self.device = [self.tensor(array.cuda()) for array in arrays]
        self.host = [self.tensor(a.float() if a.is_floating_point() else a) for a in arrays]

    def tensor(self, held: Any) -> ort_calls.Tensor:
        kind = str(held.dtype).removeprefix("torch.")
        return ort_calls.Tensor(held.data_ptr(), kind, tuple(held.shape), held)

    def outputs(self, shape: tuple[int, ...], dtype: Any, device: str) -> list[Any]:
        kinds = (self.torch.int32, dtype)
        return [self.torch.full(shape, -1, dtype=kind, device=device) for kind in kinds]

    def launch(self, hidden: Any, outputs: Any) -> None:
        """Enqueues on the current stream."""
        stream = self.torch.cuda.current_stream().cuda_stream
        inputs = [self.tensor(hidden), *self.device]
        self.kernel.run(ort_calls.Call(inputs, lambda index, _: self.tensor(outputs[index]), stream))

    def answer(self, hidden: Any, outputs: Any) -> None:
        """The CPU operator's, in float32."""
        inputs = [self.tensor(hidden.float().cpu()), *self.host]
        self.twin.run(ort_calls.Call(inputs, lambda index, _: self.tensor(outputs[index])))


def _check(played: ort_calls.Played, cases: Any, name: str, dtype: str) -> dict[str, Any]:
    node = Node(played, cases, name, dtype)
    torch, top_k = node.torch, json.loads(str(cases[f"{name}/attributes"]))["top_k"]
    found: dict[str, Any] = {"case": name, "dtype": dtype}
    shares, errors, same = [], [], True
    for tokens in TOKENS:
        hidden = torch.tensor(cases[f"{name}/hidden"][:tokens]).to(node.dtype).cuda()
        wanted = node.outputs((tokens, top_k), torch.float32, "cpu")
        node.answer(hidden, wanted)
        mine = node.outputs((tokens, top_k), node.dtype, "cuda")
        stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
        with torch.cuda.stream(stream):
            node.launch(hidden, mine)
            stream.synchronize()
            eager = [part.clone() for part in mine]
            with torch.cuda.graph(graph, stream=stream):
                node.launch(hidden, mine)
            mine[0].fill_(-1)
            stream.synchronize()
        graph.replay()
        torch.cuda.synchronize()
        same = same and all(torch.equal(a, b) for a, b in zip(mine, eager, strict=True))
        ids = eager[0].cpu()
        shares.append(float((ids.sort(1)[0] == wanted[0].sort(1)[0]).float().mean()))
        rows = (ids == wanted[0]).all(1)
        gap = (eager[1].float().cpu() - wanted[1]).abs()[rows]
        errors.append(float(gap.max()) if gap.numel() else 0.0)
        found[f"replay_us_{tokens}"] = _replay_time(torch, graph)
    least, most = LIMITS[dtype]
    crossed = "sparsemixer" in name and dtype != "float32"  # weighs by a threshold, which rounding can cross
    found |= {"same_ids": shares, "weight_error": errors, "replay_equals_eager": same}
    return found | {"passed": same and min(shares) >= least and (crossed or max(errors) <= most)}


def _replay_time(torch: Any, graph: Any, repeats: int = 100) -> float:
    for _ in range(5):
        graph.replay()
    torch.cuda.synchronize()
    begun = time.perf_counter()
    for _ in range(repeats):
        graph.replay()
    torch.cuda.synchronize()
    return round((time.perf_counter() - begun) / repeats * 1e6, 2)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("verb", choices=["prepare", "run"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, default=Path("tests/benchmarks/evidence/onnxruntime_gpu.json"))
    given = parser.parse_args()
    if given.verb == "prepare":
        prepare(given.folder)
    else:
        run(given.folder, given.out)


if __name__ == "__main__":
    main()
