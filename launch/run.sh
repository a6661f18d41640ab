#!/usr/bin/env bash
# Starts the run on every worker in the background, follows it, collects the
# logs, and ends with its status. Ctrl-C ends the following, not the run.
#
#   launch/run.sh SETTINGS [--dry-run]
set -euo pipefail
here=$(dirname "${BASH_SOURCE[0]}")
# shellcheck source=launch/tpu.sh
. "$here/tpu.sh"
# shellcheck source=launch/follow.sh
. "$here/follow.sh"
start_script "$@"
trap say_what_is_left EXIT
ready_workers

mount=''
[[ -z $DATA_DISK ]] || mount=$DATA_MOUNT
status=0
WHAT_GOES_ON="what was started on $NAME goes on: watch.sh follows it"
on_worker all start "$mount" "${RUN_ARGUMENT[@]}" \
  "--gin.MODEL_DIR=$MODEL_DIR" || status=$?
if ((status != 0)); then
  ready_workers  # Ends here where the TPU VM has gone.
  say "the run was not started on every worker of $NAME (status $status)"
  ((status != 255)) || exit "$UNREACHABLE"  # Of ssh.
  exit "$status"
fi
follow_run
