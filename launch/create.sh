#!/usr/bin/env bash
# Creates the TPU VM, and the data disk if it does not exist yet.
#
#   launch/create.sh SETTINGS [--dry-run]
set -euo pipefail
# shellcheck source=launch/tpu.sh
. "$(dirname "${BASH_SOURCE[0]}")/tpu.sh"
start_script "$@"

state=$(tpu_state "$ABSENT")
state=${state%%$'\t'*}
if [[ $state == READY ]]; then
  say "TPU VM $NAME exists already"
  exit
fi
trap say_what_is_left EXIT
if [[ $state != "$ABSENT" ]]; then
  say "TPU VM $NAME exists already and is $state: delete it first, or wait"
  exit 1
fi

flags=("--accelerator-type=$ACCELERATOR_TYPE")
if [[ -n $DATA_DISK ]]; then
  if [[ $(disk_state "$ABSENT") == "$ABSENT" ]]; then
    call gcloud compute disks create "$DATA_DISK" "${WHERE[@]}" \
      "--size=${DATA_DISK_GB}GB" "--type=$DATA_DISK_TYPE"
  fi
  source=projects/$PROJECT/zones/$ZONE/disks/$DATA_DISK
  flags+=("--data-disk=source=$source,mode=read-write")
fi
[[ $PROVISIONING == *spot ]] && flags+=(--spot)
flags+=(${CREATE_FLAG[@]+"${CREATE_FLAG[@]}"})

if is_queued; then
  state=$(request_state "$ABSENT")
  if [[ $state == "$ABSENT" ]]; then
    call gcloud compute tpus queued-resources create "$NAME" "${WHERE[@]}" \
      "--node-id=$NAME" "--runtime-version=$RUNTIME_VERSION" "${flags[@]}"
  fi
  last=''
  while :; do
    state=$(request_state ACTIVE)
    [[ $state == "$last" ]] || say "queued resource $NAME is $state"
    last=$state
    case $state in
      ACTIVE) break ;;
      FAILED | SUSPENDING | SUSPENDED | DELETING | "$ABSENT")
        say "queued resource $NAME will not become a TPU"
        exit 1 ;;
    esac
    sleep "$POLL_SECONDS"
  done
else
  call gcloud compute tpus tpu-vm create "$NAME" "${WHERE[@]}" \
    "--version=$RUNTIME_VERSION" "${flags[@]}"
fi
say "TPU VM $NAME is there; it costs until delete.sh deletes it"
