# shellcheck shell=bash
# What the launch scripts share: the command line, gcloud, and what is left.
# They source it; it sources settings.sh.
# shellcheck disable=SC2034  # The scripts use the variables.

# shellcheck source=launch/settings.sh
. "${BASH_SOURCE[0]%/*}/settings.sh"

UNREACHABLE=69  # EX_UNAVAILABLE: gcloud or ssh failed, nothing of the run did.
START_AGAIN=75  # EX_TEMPFAIL: pre-empted, the same command goes on from there.
ABSENT=ABSENT

SETTINGS=''  # Path of the settings file.
DRY_RUN=''
WANT_DISK=''  # delete.sh --disk
WHERE=()      # Flags of every gcloud call.
exec 3>&1     # Dry-run lines, also from within $(…).

# say MESSAGE: one line for the user; not in a dry run, where it did not happen.
say() { [[ -n $DRY_RUN ]] || printf '%s: %s\n' "${0##*/}" "$*" >&2; }

# start_script "$@": reads the arguments that all scripts have, and settings.
start_script() {
  local argument
  for argument; do
    case $argument in
      --dry-run) DRY_RUN=yes ;;
      --disk)
        [[ ${0##*/} == delete.sh ]] || fail "--disk is for delete.sh only"
        WANT_DISK=yes ;;
      -*) fail "unknown flag $argument; usage: ${0##*/} SETTINGS [--dry-run]" ;;
      *)
        [[ -z $SETTINGS ]] || fail "two settings files: $SETTINGS, $argument"
        SETTINGS=$argument ;;
    esac
  done
  [[ -n $SETTINGS ]] || fail "usage: ${0##*/} SETTINGS [--dry-run]"
  read_settings "$SETTINGS"
  WHERE=("--project=$PROJECT" "--zone=$ZONE" --quiet)
  trap 'exit 130' INT
  trap 'exit 143' TERM
  trap 'exit 129' HUP
}

# quote WORD…: the words as a POSIX shell reads them back, on one line.
quote() {
  local LC_ALL=C word separator='' escaped="'\\''"
  for word; do
    [[ $word =~ ^[A-Za-z0-9_@%+=:,./-]+$ ]] ||
      word="'${word//\'/$escaped}'"
    printf '%s%s' "$separator" "$word"
    separator=' '
  done
}

# call COMMAND…: runs it, or prints it in a dry run.
call() {
  if [[ -n $DRY_RUN ]]; then
    quote "$@" >&3
    printf '\n' >&3
  else
    "$@" </dev/null 3>&-
  fi
}

# ask ASSUMED COMMAND…: prints its answer, ABSENT where the thing it asks about
# does not exist, and ASSUMED in a dry run. Fails with UNREACHABLE.
ask() {
  local assumed=$1 answer errors status=0
  shift
  if [[ -n $DRY_RUN ]]; then
    call "$@"
    printf '%s\n' "$assumed"
    return
  fi
  errors=$(mktemp)
  answer=$("$@" 2>"$errors" </dev/null 3>&-) || status=$?
  if ((status == 0)); then
    printf '%s\n' "$answer"
  elif grep -q 'NOT_FOUND\|was not found' "$errors"; then
    printf '%s\n' "$ABSENT"
    status=0
  else
    cat "$errors" >&2
    status=$UNREACHABLE
  fi
  rm -f "$errors"
  return "$status"
}

# tpu_state ASSUMED: state of the TPU VM and, after a tab, how many workers.
tpu_state() {
  ask "$1" gcloud compute tpus tpu-vm describe "$NAME" "${WHERE[@]}" \
    '--format=value(state,networkEndpoints.len())'
}

# request_state ASSUMED: state of the queued resource, which is named as its TPU.
request_state() {
  ask "$1" gcloud compute tpus queued-resources describe "$NAME" \
    "${WHERE[@]}" '--format=value(state.state)'
}

# disk_state ASSUMED: state of DATA_DISK.
disk_state() {
  ask "$1" gcloud compute disks describe "$DATA_DISK" "${WHERE[@]}" \
    '--format=value(status)'
}

is_queued() { [[ $PROVISIONING == queued* ]]; }

# The commands that delete, in DELETE: what is said is what delete.sh does.
delete_tpu() {
  DELETE=(gcloud compute tpus tpu-vm delete "$NAME" "${WHERE[@]}")
}
delete_request() {  # Without --force a request that has a TPU stays.
  DELETE=(gcloud compute tpus queued-resources delete "$NAME" "${WHERE[@]}" \
    --force)
}
delete_disk() {
  DELETE=(gcloud compute disks delete "$DATA_DISK" "${WHERE[@]}")
}

# worker_command WORKERS ARGUMENT…: sets COMMAND to what runs worker.sh there
# (`all`, or the number of one).
#
# gcloud's --output-directory is not used: version 528 writes to None/0.log.
worker_command() {
  local workers=$1
  shift
  COMMAND=(gcloud compute tpus tpu-vm ssh "$NAME" "${WHERE[@]}" \
    "--worker=$workers" "--command=$(quote bash rest_jax_worker.sh "$@")")
}

# on_worker WORKERS ARGUMENT…: runs that command.
on_worker() {
  worker_command "$@"
  call "${COMMAND[@]}"
}

# to_workers PATH [NAME]: copies a local file or folder to every worker's home.
to_workers() {
  local path=$1
  [[ $path == /* ]] || path=./$path  # Else -x would be a flag.
  call gcloud compute tpus tpu-vm scp "$path" "$NAME:${2-}" "${WHERE[@]}" \
    --worker=all --recurse
}

# ready_workers: sets WORKERS; ends the script where the TPU VM is not READY.
ready_workers() {
  local answer
  answer=$(tpu_state $'READY\t1')
  workers_of "$answer"
}

# workers_of ANSWER: the same from what tpu_state has told.
workers_of() {
  local answer=$1 state=${1%%$'\t'*}
  case $state in
    READY)
      WORKERS=${answer##*$'\t'}
      [[ $WORKERS =~ ^[1-9][0-9]*$ ]] || WORKERS=1 ;;
    "$ABSENT")
      say "TPU VM $NAME does not exist in $ZONE: create.sh makes it"
      exit "$START_AGAIN" ;;
    PREEMPTED | TERMINATED | STOPPED | STOPPING | DELETING | SUSPENDED)
      say "TPU VM $NAME is $state: resume.sh makes it again and goes on"
      exit "$START_AGAIN" ;;
    *)
      say "TPU VM $NAME is $state, not READY: try again later"
      exit "$UNREACHABLE" ;;
  esac
}

# say_what_is_left: the EXIT trap of scripts that leave something behind when
# they fail: what exists now, and the command that deletes it. Where resume.sh
# called the script (REST_JAX_RESUMING), resume.sh says it.
say_what_is_left() {
  local status=$? silent=${REST_JAX_RESUMING-}
  trap - EXIT
  [[ ${0##*/} != resume.sh ]] || silent=''
  if ((status != 0)) && [[ -z $DRY_RUN && -z $silent ]]; then
    [[ -z ${WHAT_GOES_ON-} ]] || say "$WHAT_GOES_ON"
    _say_left 'TPU VM' "$NAME" "$(tpu_state '' || echo UNKNOWN)" delete_tpu
    ! is_queued || _say_left 'queued resource' "$NAME" \
      "$(request_state '' || echo UNKNOWN)" delete_request
    [[ -z $DATA_DISK ]] || _say_left disk "$DATA_DISK" \
      "$(disk_state '' || echo UNKNOWN)" delete_disk
  fi
  exit "$status"
}

_say_left() {
  local state=${3%%$'\t'*}
  "$4"
  case $state in
    "$ABSENT") say "no $1 $2 is left" ;;
    UNKNOWN) say "$1 $2 may exist, and cost; to delete it:" \
      "$(quote "${DELETE[@]}")" ;;
    *) say "$1 $2 exists ($state), and costs; to delete it:" \
      "$(quote "${DELETE[@]}")" ;;
  esac
}
