#!/usr/bin/env bash
# Everything about the CUDA kernels in one run on a machine with a GPU: gpu_kernels.sh OUT [PEERS [MODEL BUNDLE]].
# Build, parity, memcheck, sweep, the routing matrix with its page, and a running model; each part bounded by itself.
set -uo pipefail
out="$1" peers="${2:-}" model="${3:-}" bundle="${4:-}"
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)" tests="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
timeout 240 bash -c "source '$here/gpu_build.sh'" || exit 1
export PYTHONPATH="$here/../../runtime:$here/../../converter:$tests" PYTHONUNBUFFERED=1
run=(python3 -m pytest -q -p no:cacheprovider -p no:benchmark -m gpu -k "not optix" --rootdir "$here/../..")
timeout 150 "${run[@]}" -n 8 "$tests/plugins/test_gpu_operators.py" "$tests/plugins/test_gpu_parity.py" 2>&1 | tail -30 | tee "$out/parity.log"
timeout 120 compute-sanitizer --tool memcheck --target-processes all --error-exitcode 9 "${run[@]}" \
  "$tests/plugins/test_gpu_operators.py" "$tests/plugins/test_gpu_parity.py" \
  -k "(fused_gate_is and bfloat16 and 9 and (olmoe or deepseek or wide)) or (tree_walk and (33 or 1000)) or (fused_geometry and bfloat16)" \
  2>&1 | tail -12 | tee "$out/memcheck.log"
timeout 100 python3 "$here/gpu_sweep.py" "$out/sweep.json" 2>&1 | tee "$out/sweep.log"
timeout 200 python3 - "$out" "$peers" <<'PY'
import sys
from spectral_convert.bench_route import bench_route
from spectral_convert.route_page import write_page
out, peers = sys.argv[1], sys.argv[2] or None
bench_route(f"{out}/route.json", repeats=11, budget=0.05, compiled=True, peers=peers)
write_page(f"{out}/route.json", f"{out}/route")
PY
if [ -n "$bundle" ]; then
  timeout 150 python3 "$here/bench_attach_gpu.py" "$model" "$bundle" "$out/attach.json" --compile 2>&1 | tail -20
fi
