# shellcheck shell=bash
# Follows a run to its end, for run.sh, watch.sh and resume.sh, which source it
# after tpu.sh.
# shellcheck disable=SC2034,SC2154  # Shared variables.

POLLS_WITHOUT_ANSWER=5  # In a row, before the workers count as unreachable.
# What worker.sh status told, sorted by host. (LINES is bash's own.)
HOSTS=() STATES=() LAST_LINES=()
LOGS=''

# poll_workers: fills HOSTS, STATES, LAST_LINES; fails where a worker did not answer.
poll_workers() {
  local answer host state line
  worker_command all status
  HOSTS=() STATES=() LAST_LINES=()
  answer=$(ask 'rest_jax-status HOST 0' "${COMMAND[@]}") || return
  while read -r host state line; do
    HOSTS+=("$host")
    STATES+=("$state")
    LAST_LINES+=("$line")
  done < <(printf '%s\n' "$answer" | sed -n 's/^rest_jax-status //p' | sort)
  ((${#HOSTS[@]} == WORKERS))
}

# any_state STATE: whether a worker is in it.
any_state() {
  local state
  for state in ${STATES[@]+"${STATES[@]}"}; do
    [[ $state != "$1" ]] || return 0
  done
  return 1
}

# follow_run: waits for all workers, collects their logs, and ends the script
# with the run's status.
follow_run() {
  local silent=0 last='' answer
  while :; do
    if poll_workers; then
      silent=0
      if [[ ${LAST_LINES[0]} != "$last" ]]; then
        last=${LAST_LINES[0]}
        printf '%s: %s\n' "${HOSTS[0]}" "$last"
      fi
      any_state running || break
    else
      # Ends here where the TPU VM has gone, not where nothing answers at all.
      if answer=$(tpu_state $'READY\t1'); then
        workers_of "$answer"
      fi
      silent=$((silent + 1))
      if ((silent == POLLS_WITHOUT_ANSWER)); then
        say "workers of $NAME do not answer; the run may go on:" \
          'watch.sh looks again'
        exit "$UNREACHABLE"
      fi
    fi
    sleep "$POLL_SECONDS"
  done
  WHAT_GOES_ON=''
  if ! printf '%s\n' "${STATES[@]}" | grep -qvx none; then
    say "no run was started on $NAME: run.sh starts one"
    exit 1
  fi
  _collect_logs
  _end_with_status
}

# _collect_logs: LOG_DIR/NAME-1/worker-0.log …, a folder for each run followed.
_collect_logs() {
  local number=1 worker
  while [[ -e $LOG_DIR/$NAME-$number ]]; do
    number=$((number + 1))
  done
  LOGS=$LOG_DIR/$NAME-$number
  [[ -n $DRY_RUN ]] || mkdir -p "$LOGS"
  for ((worker = 0; worker < WORKERS; worker++)); do
    worker_command "$worker" log
    if [[ -n $DRY_RUN ]]; then
      printf '%s > %s\n' "$(quote "${COMMAND[@]}")" \
        "$(quote "$LOGS/worker-$worker.log")" >&3
    elif ! call "${COMMAND[@]}" >"$LOGS/worker-$worker.log"; then
      say "the log of worker $worker could not be fetched"
    fi
  done
}

# _end_with_status: one line for the worst that happened, and its status. What
# a worker did of itself comes before what stopped it, and that before status
# 134, with which JAX aborts the workers that lost a peer.
_end_with_status() {
  local i own='' stopped='' aborted=''
  for ((i = 0; i < ${#HOSTS[@]}; i++)); do
    case ${STATES[i]} in
      0) ;;
      134) aborted+=" ${HOSTS[i]}" ;;
      # 143: SIGTERM, which a version that does not save on it dies of. none:
      # it was not started there, where others were.
      "$START_AGAIN" | 143 | lost | none) stopped=${stopped:-$i} ;;
      *) own=${own:-$i} ;;
    esac
  done
  i=${own:-$stopped}
  if [[ -n $aborted && -n $i ]]; then
    say "status 134 on$aborted: JAX aborted them because ${HOSTS[i]}" \
      "(${STATES[i]}) had died; logs in $LOGS"
  elif [[ -n $aborted ]]; then
    say "status 134 on$aborted: aborted, as JAX does when a peer died, and no" \
      "other host says why; logs in $LOGS"
    exit 134
  elif [[ -n $own ]]; then
    say "${HOSTS[i]} ended with status ${STATES[i]}; logs in $LOGS"
  elif [[ -n $stopped ]]; then
    say "${HOSTS[i]} was stopped (${STATES[i]}); logs in $LOGS"
  else
    say "done; logs in $LOGS; fetch.sh fetches the results; $NAME costs until" \
      'delete.sh deletes it'
    exit 0
  fi
  [[ -z $own ]] || exit "${STATES[own]}"
  say 'the state is saved: start again, or let resume.sh do so'
  exit "$START_AGAIN"
}
