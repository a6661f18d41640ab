#!/usr/bin/env bash
# Installs rest_jax on every worker, and mounts the data disk.
#
#   launch/setup.sh SETTINGS [--dry-run]
set -euo pipefail
here=$(dirname "${BASH_SOURCE[0]}")
# shellcheck source=launch/tpu.sh
. "$here/tpu.sh"
start_script "$@"
trap say_what_is_left EXIT
ready_workers

if [[ -n $DATA_DISK ]] && ((WORKERS > 1)); then
  say "DATA_DISK=$DATA_DISK cannot be written by $WORKERS workers: use a TPU" \
    'of one host, or a MODEL_DIR on gs:// and no disk'
  exit 2
fi
to_workers "$here/worker.sh" rest_jax_worker.sh
for path in ${COPY[@]+"${COPY[@]}"}; do
  to_workers "$path"
done
[[ -z $DATA_DISK ]] || on_worker all mount "$DATA_MOUNT"
if [[ $INSTALL == *.whl ]]; then
  to_workers "$INSTALL"
  on_worker all install "${INSTALL##*/}" "$PYTHON_VERSION"
else
  on_worker all install "$INSTALL" "$PYTHON_VERSION"
fi
say "rest_jax is installed on $WORKERS worker(s) of $NAME"
