#!/usr/bin/env bash
# Creates a Cloud TPU VM (or pod slice), trains on all its workers, fetches the
# results, deletes it. Prints the commands unless --run is given.
#   launch/tpu_vm.sh [--run] NAME ZONE TYPE CONFIG WORKDIR [flags]
#   launch/tpu_vm.sh tlkd us-central2-b v4-8 configs/compare.py runs/compare
set -euo pipefail
cd "$(dirname "$0")/.."

run=false
if [ "${1:-}" = --run ]; then
  run=true
  shift
fi
if [ $# -lt 5 ]; then
  echo "usage: $0 [--run] NAME ZONE TYPE CONFIG WORKDIR [flags]" >&2
  exit 2
fi
name=$1
zone=$2
type=$3
config=$4
workdir=$5
shift 5
version=${TPU_VERSION:-tpu-ubuntu2204-base}

do_or_print() {
  if $run; then
    "$@"
  else
    printf '%q ' "$@"
    printf '\n'
  fi
}

tpu() {
  do_or_print gcloud compute tpus tpu-vm "$@"
}

archive=$(mktemp --suffix=.tar.gz)
trap 'rm -f "$archive"' EXIT
git archive --format=tar.gz -o "$archive" HEAD

flags=$(printf ' %q' "$@")
distributed=""
# A slice of more than one host has one process per worker.
case $type in
  *-1 | *-4 | *-8) ;;
  *) distributed="--distributed" ;;
esac
train="cd tlkd_jax && python3 -m tlkd_jax.main $distributed"
train+=" --config $config --workdir $workdir$flags"
install="mkdir -p tlkd_jax && tar xzf tlkd_jax.tar.gz -C tlkd_jax"
install+=" && cd tlkd_jax && pip install -q -r requirements-tpu.txt"

tpu create "$name" --zone "$zone" --accelerator-type "$type" \
  --version "$version"
tpu scp "$archive" "$name:tlkd_jax.tar.gz" --zone "$zone" --worker all
tpu ssh "$name" --zone "$zone" --worker all --command "$install"
tpu ssh "$name" --zone "$zone" --worker all --command "$train"
tpu scp --recurse "$name:tlkd_jax/$workdir" "$workdir" --zone "$zone" \
  --worker 0
tpu delete "$name" --zone "$zone" --quiet
