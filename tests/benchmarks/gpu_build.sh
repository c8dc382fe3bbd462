#!/usr/bin/env bash
# Builds the extension in place for the GPU of this machine, without an install: sourced by GPU runs.
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
export PYTHONPATH="$root/runtime:$root/converter:$root/tests:${PYTHONPATH:-}" PYTHONUNBUFFERED=1
cmake -G Ninja -S "$root/plugins" -B "$root/build/gpu" -DSPECTRAL_CUDA=ON -DSPECTRAL_CUDA_ARCHITECTURES=90 \
  -DSKBUILD_PROJECT_VERSION=0.1.0 -Dpybind11_DIR="$(python3 -m pybind11 --cmakedir)" -DPython_EXECUTABLE="$(command -v python3)" >/dev/null
ninja -C "$root/build/gpu" _native | grep -E "FAILED|error|Linking" 
cp "$root"/build/gpu/bindings/_native*.so "$root/runtime/spectral_runtime/"
