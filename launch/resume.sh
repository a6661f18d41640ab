#!/usr/bin/env bash
# Continues until the run is done: follows one that is going on, makes a TPU VM
# again that was pre-empted, sets it up, and starts the run again, which goes on
# from what MODEL_DIR holds. Starts from nothing as well.
#
#   launch/resume.sh SETTINGS [--dry-run]
set -euo pipefail
here=$(dirname "${BASH_SOURCE[0]}")
# shellcheck source=launch/tpu.sh
. "$here/tpu.sh"
# shellcheck source=launch/follow.sh
. "$here/follow.sh"
start_script "$@"
if [[ -z $DATA_DISK && $MODEL_DIR != gs://* ]]; then
  fail "$SETTINGS: DATA_DISK is not set: a TPU VM that is made again has" \
    'nothing to go on from'
fi
trap say_what_is_left EXIT
export REST_JAX_RESUMING=yes
flags=("$SETTINGS")
[[ -z $DRY_RUN ]] || flags+=(--dry-run)
is_set_up=''

# Whether a dead TPU or request has to go before a new one can be made.
must_delete() {
  local request
  case $1 in
    PREEMPTED | TERMINATED | STOPPED | SUSPENDED) return 0 ;;
  esac
  is_queued || return 1
  request=$(request_state "$ABSENT") || return
  [[ $request == FAILED || $request == SUSPENDED ]]
}

# Whether a run is going on after all, which an earlier look has missed.
goes_on() {
  poll_workers || true
  any_state running
}

# One start: returns the run's status, or that of what failed before.
start_once() {
  local state what=run fresh='' status=0
  state=$(tpu_state "$ABSENT") || return
  state=${state%%$'\t'*}
  case $state in
    READY) ;;
    CREATING | STARTING | RESTARTING | REPAIRING | STOPPING | DELETING)
      say "TPU VM $NAME is $state: waiting"
      return "$UNREACHABLE" ;;
    *)
      if must_delete "$state"; then
        say "TPU VM $NAME is $state: making it again"
        "$here/delete.sh" "${flags[@]}" || return "$UNREACHABLE"
      fi
      is_set_up=''
      fresh=yes
      # There may be no room just now; what gcloud calls wrong (2) stays wrong.
      "$here/create.sh" "${flags[@]}" || return $(($? == 2 ? 2 : UNREACHABLE))
      ;;
  esac
  if [[ -z $fresh ]]; then
    WORKERS=0
    poll_workers || true  # A worker that is not set up does not answer.
    # Else it is set up once in any case: INSTALL or COPY may have changed, and
    # a setup that was cut off have left a part.
    if any_state running; then
      what=watch
      is_set_up=yes
    fi
  fi
  if [[ -z $is_set_up ]]; then
    "$here/setup.sh" "${flags[@]}" || status=$?
    if ((status != 0)); then
      if ((status == 255)) || goes_on; then
        return "$UNREACHABLE"
      fi
      return "$status"
    fi
    is_set_up=yes
  fi
  WHAT_GOES_ON="if the run on $NAME had begun, it goes on: resume.sh follows it"
  "$here/$what.sh" "${flags[@]}" || status=$?
  # Not started, because it was started before.
  if ((status == 1)) && [[ $what == run ]] && goes_on; then
    status=$UNREACHABLE
  fi
  return "$status"
}

for ((number = 1; number <= MAX_STARTS; number++)); do
  status=0
  start_once || status=$?
  case $status in
    0) exit 0 ;;
    "$START_AGAIN" | "$UNREACHABLE") ;;
    *) exit "$status" ;;
  esac
  say "start $number of at most $MAX_STARTS ended with status $status: next" \
    "one in $POLL_SECONDS seconds"
  sleep "$POLL_SECONDS"
done
say "MAX_STARTS=$MAX_STARTS starts did not finish the run"
exit "$status"
