#!/usr/bin/env bash
# Creates a Cloud TPU VM or pod slice, trains on all its workers, fetches the
# results into WORKDIR here, and deletes it, also after a failure (KEEP=1 keeps
# it). Prints the commands unless --run is given.
#   launch/tpu_vm.sh [--run] NAME ZONE TYPE CONFIG WORKDIR [flags]
#   launch/tpu_vm.sh tlkd us-central2-b v4-8 configs/compare.py runs/compare
# A slice of several workers needs a file system that all of them see: SETUP is
# a command that mounts one on each worker, REMOTE the run's folder in it.
#   SETUP='sudo mkdir -p /mnt/b && gcsfuse my-bucket /mnt/b' \
#     REMOTE=/mnt/b/compare launch/tpu_vm.sh tlkd us-central2-b v4-32 ...
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
remote=${REMOTE:-$workdir}

distributed=""
case $type in
  *-1 | *-4 | *-8) ;;
  *)
    distributed=" --distributed"
    case $remote in
      /*) ;;
      *)
        echo "$0: $type has several workers; set REMOTE to an absolute path" \
          "on a file system that all of them mount (SETUP)" >&2
        exit 2
        ;;
    esac
    ;;
esac

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

on_all() {
  tpu ssh "$name" --zone "$zone" --worker all --command "$1"
}

archive=$(mktemp --suffix=.tar.gz)
created=false
clean_up() {
  rm -f "$archive"
  if $created && [ "${KEEP:-}" != 1 ]; then
    tpu delete "$name" --zone "$zone" --quiet
  fi
}
trap clean_up EXIT
git archive --format=tar.gz -o "$archive" HEAD

# The image brings Python 3.10.
install="mkdir -p tlkd_jax && tar xzf tlkd_jax.tar.gz -C tlkd_jax"
install+=" && (command -v python3.11 > /dev/null"
install+=" || (sudo apt-get -qq update && sudo apt-get -qqy install"
install+=" python3.11-venv)) && cd tlkd_jax && python3.11 -m venv .venv"
install+=" && .venv/bin/pip install -q -r requirements-tpu.txt"
train="cd tlkd_jax && .venv/bin/python -m tlkd_jax.main$distributed"
train+=" --config $(printf '%q' "$config") --workdir $(printf '%q' "$remote")"
if [ $# -gt 0 ]; then
  train+=$(printf ' %q' "$@")
fi
case $remote in
  /*) source=$remote ;;
  *) source=tlkd_jax/$remote ;;
esac

created=true
tpu create "$name" --zone "$zone" --accelerator-type "$type" \
  --version "$version"
tpu scp "$archive" "$name:tlkd_jax.tar.gz" --zone "$zone" --worker all
if [ -n "${SETUP:-}" ]; then
  on_all "$SETUP"
fi
on_all "$install"
on_all "$train"
do_or_print mkdir -p "$(dirname "$workdir")"
tpu scp --recurse "$name:$source" "$workdir" --zone "$zone" --worker 0
