#!/usr/bin/env bash
# Runs gpu_heal.py detached, from the source tree, so that healings outlast one command:
#   gpu_heal.sh start NAME ARGUMENTS...   starts it
#   gpu_heal.sh wait NAME SECONDS OUT     waits at most so long, then copies records and logs to OUT
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
export PYTHONPATH="$root/runtime:$root/converter:$root/tests:${PYTHONPATH:-}" PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1
export TOKENIZERS_PARALLELISM=true TRANSFORMERS_VERBOSITY=error
action="$1" name="$2" place="${TMPDIR:-/tmp}/gpu-heal-$2"
shift 2
if [ "$action" = start ]; then
  mkdir -p "$place"
  setsid nohup python3 "$root/tests/benchmarks/gpu_heal.py" "$@" --folder "$place/work" --out "$place/out" \
    >"$place/log" 2>&1 </dev/null &
  echo $! >"$place/pid"
else
  end=$((SECONDS + $1))
  while kill -0 "$(cat "$place/pid")" 2>/dev/null && [ "$SECONDS" -lt "$end" ]; do sleep 1; done
  mkdir -p "$2/$name"
  cp -r "$place/log" "$2/$name/" && cp -r "$place"/out "$2/$name/" 2>/dev/null || true
  find "$place/work" -maxdepth 2 \( -name "*.log" -o -name "[0-9].json" \) -exec cp {} "$2/$name/" \;
  kill -0 "$(cat "$place/pid")" 2>/dev/null && echo "$name: still running" || cat "$place/log"
fi
