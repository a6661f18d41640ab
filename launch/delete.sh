#!/usr/bin/env bash
# Deletes the TPU VM, and with --disk the data disk and what is on it.
#
#   launch/delete.sh SETTINGS [--disk] [--dry-run]
set -euo pipefail
# shellcheck source=launch/tpu.sh
. "$(dirname "${BASH_SOURCE[0]}")/tpu.sh"
start_script "$@"
trap say_what_is_left EXIT

# A queued resource takes its TPU VM with it.
if is_queued && [[ $(request_state ACTIVE) != "$ABSENT" ]]; then
  delete_request
  call "${DELETE[@]}"
  say "queued resource $NAME and its TPU VM are deleted"
elif [[ $(tpu_state READY) != "$ABSENT" ]]; then
  delete_tpu
  call "${DELETE[@]}"
  say "TPU VM $NAME is deleted"
else
  say "there is no TPU VM $NAME"
fi

if [[ -n $DATA_DISK && $(disk_state READY) != "$ABSENT" ]]; then
  delete_disk
  if [[ -n $WANT_DISK ]]; then
    call "${DELETE[@]}"
    say "disk $DATA_DISK is deleted"
  else
    say "disk $DATA_DISK stays, and costs; to delete it and all on it:" \
      "$(quote "${DELETE[@]}")"
  fi
fi
