#!/usr/bin/env bash
# Trains on this machine: CPU, or all its GPUs in one process.
#   launch/local.sh configs/compare.py runs/compare [--config.KEY=VALUE ...]
set -euo pipefail
cd "$(dirname "$0")/.."

if [ $# -lt 2 ]; then
  echo "usage: $0 CONFIG WORKDIR [flags of tlkd_jax.main]" >&2
  exit 2
fi
config=$1
workdir=$2
shift 2

# Where it is installed: on CPU steps after a compilation are a tenth shorter.
if [ -z "${LD_PRELOAD:-}" ]; then
  tcmalloc=$(PATH="$PATH:/sbin" ldconfig -p 2>/dev/null |
    awk '/libtcmalloc(_minimal)?\.so\.4 / && !found { print $NF; found = 1 }') || true
  if [ -n "$tcmalloc" ]; then
    export LD_PRELOAD="$tcmalloc"
  fi
fi
exec "${PYTHON:-python}" -m tlkd_jax.main \
  --config "$config" --workdir "$workdir" "$@"
