#!/usr/bin/env bash
# Copies MODEL_DIR, without what only going on with it needs, from worker 0 into
# RESULTS_DIR; while the run is going on too.
#
#   launch/fetch.sh SETTINGS [--dry-run]
set -euo pipefail
# shellcheck source=launch/tpu.sh
. "$(dirname "${BASH_SOURCE[0]}")/tpu.sh"
start_script "$@"

target=$RESULTS_DIR/${MODEL_DIR##*/}
[[ -n $DRY_RUN ]] || mkdir -p "$target"
if [[ $MODEL_DIR == gs://* ]]; then
  call gcloud storage rsync "$MODEL_DIR" "$target" --recursive \
    "--project=$PROJECT" --quiet '--exclude=(.*/)?\.work/.*'
  say "$MODEL_DIR is in $target"
  exit
fi
ready_workers
worker_command 0 archive "$MODEL_DIR"
unpack=(tar -C "$target" -xf -)
if [[ -n $DRY_RUN ]]; then
  printf '%s | %s\n' "$(quote "${COMMAND[@]}")" "$(quote "${unpack[@]}")"
elif call "${COMMAND[@]}" | "${unpack[@]}"; then
  say "$MODEL_DIR is in $target"
else
  say "$target may lack files of $MODEL_DIR: run fetch.sh again"
  exit 1
fi
