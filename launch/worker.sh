#!/usr/bin/env bash
# Runs on a worker of the TPU VM: setup.sh copies it there, the others call it.
#
#   worker.sh mount FOLDER            mounts the data disk; formats a blank one
#   worker.sh install WHAT PYTHON     installs rest_jax with TPU support
#   worker.sh start MOUNT ARGUMENT…   starts a run in the background
#   worker.sh status                  "rest_jax-status HOST STATE" and last line
#   worker.sh log                     the run's log
#   worker.sh archive FOLDER          the folder as a tar file on standard output
#
# Not for users: _job MOUNT ARGUMENT…, the background process of `start`.
set -euo pipefail

label=rest_jax  # Of the data disk's file system.
venv=$HOME/rest_jax_venv
state=$HOME/rest_jax_run
lock=$state/lock  # Held (flock) as long as the run lives, however it ends.

fail() {
  printf '%s: %s\n' "$(hostname)" "$*" >&2
  exit 1
}

# The only whole disk without partitions, file system and mount point.
blank_disk() {
  local disk found=()
  while read -r disk; do
    if [[ $(sudo -n lsblk -rno NAME,FSTYPE,MOUNTPOINT "$disk" |
      wc -w) == 1 ]]; then
      found+=("$disk")
    fi
  done < <(sudo -n lsblk -dnpo NAME,TYPE | awk '$2 == "disk" {print $1}')
  ((${#found[@]} == 1)) ||
    fail "no file system is labelled $label and there are ${#found[@]} blank" \
      "disks (${found[*]-}), not 1: label yours with sudo e2label DEVICE $label"
  printf '%s\n' "${found[0]}"
}

mount_disk() {
  local folder=$1 device
  mountpoint -q "$folder" && return
  if ! device=$(sudo -n blkid -L "$label"); then
    device=$(blank_disk)
    printf '%s: formatting the blank disk %s\n' "$(hostname)" "$device" >&2
    sudo -n mkfs.ext4 -q -L "$label" "$device"
  fi
  sudo -n mkdir -p "$folder"
  sudo -n mount -o discard,defaults "$device" "$folder"
  sudo -n chown "$(id -u):$(id -g)" "$folder"
}

install() {
  local what=$1 python=$2 uv
  if [[ -e $lock ]] && running; then
    fail 'a run is going on here, which this would take its Python from:' \
      'watch.sh follows it'
  fi
  # The TPU VM's own Python (3.10 in Ubuntu 22.04) is too old.
  uv=$(command -v uv || true)
  if [[ -z $uv ]]; then
    python3 -m pip install --quiet --user uv
    uv=$HOME/.local/bin/uv
  fi
  rm -rf "$venv"
  "$uv" venv --quiet --python "$python" "$venv"
  case $what in
    *.whl) what="$HOME/${what}[tpu]" ;;
    *) what="rest_jax[tpu] @ $what" ;;
  esac
  "$uv" pip install --quiet --python "$venv/bin/python" "$what"
  printf '%s: %s\n' "$(hostname)" \
    "$("$venv/bin/python" -c 'import rest_jax; print(rest_jax.__version__)')"
}

# libtpu leaves its lock file behind when it is killed, and then refuses to
# start. It is removed only if no process of any user has it open.
remove_stale_libtpu_lock() {
  local file=${TMPDIR:-/tmp}/libtpu_lockfile users status=0
  [[ -e $file ]] || return 0
  users=$(sudo -n fuser "$file" 2>/dev/null) || status=$?
  case $status in
    0)
      read -r users <<<"$users"
      fail "the TPU is in use by process $users: end it first" ;;
    1) sudo -n rm -f "$file" ;;
    *) fail "cannot tell who uses $file (fuser failed): remove it by hand" ;;
  esac
}

running() { ! flock -n "$lock" true; }

start() {
  local folder=$1
  mkdir -p "$state"
  if running; then
    fail 'a run is going on here: watch.sh follows it'
  fi
  [[ -z $folder ]] || mount_disk "$folder"
  [[ -x $venv/bin/python ]] || fail 'rest_jax is not installed: run setup.sh'
  remove_stale_libtpu_lock
  rm -f "$state/status"
  setsid nohup bash "$0" _job "$@" </dev/null >"$state/log" 2>&1 &
  # The lock must be seen before `start` returns, or a poll would say `lost`.
  for _ in $(seq 100); do
    if running || [[ -e $state/status ]]; then
      printf '%s: started\n' "$(hostname)"
      return
    fi
    sleep 0.05
  done
  fail "the run did not start: $(tail -n 1 "$state/log")"
}

job() {
  local status=0
  shift
  exec 9>"$lock"
  flock 9
  cd "$HOME"
  # At pre-emption every process gets SIGTERM; this one stays for the status.
  trap : TERM
  "$venv/bin/python" -m rest_jax.main "$@" &
  # `wait` returns early when the trap has run.
  while :; do
    status=0
    wait $! || status=$?
    kill -0 $! 2>/dev/null || break
  done
  printf '%s\n' "$status" >"$state/status.new"
  mv "$state/status.new" "$state/status"
}

status() {
  local now=none line=''
  if [[ -e $state/status ]]; then
    now=$(cat "$state/status")
  elif [[ -e $lock ]]; then
    # Ended between the two looks, or with the machine, without a status.
    if running; then
      now=running
    elif [[ -e $state/status ]]; then
      now=$(cat "$state/status")
    else
      now=lost
    fi
  fi
  [[ ! -e $state/log ]] ||
    line=$(tail -n 1 "$state/log" | tr '\r' '\n' | tail -n 1 |
      tr -d '[:cntrl:]' | cut -c 1-200)
  printf 'rest_jax-status %s %s %s\n' "$(hostname)" "$now" "$line"
}

command=${1-}
shift || true
case $command in
  mount) mount_disk "$1" ;;
  install) install "$@" ;;
  start) start "$@" ;;
  _job) job "$@" ;;
  status) status ;;
  log) cat "$state/log" ;;
  archive)
    [[ -d $1 ]] || fail "there is no folder $1"
    # .work holds what only going on with a stage needs; .lock is this host's.
    tar -C "$1" --exclude=./.lock --exclude=.work -cf - . ;;
  *) fail "unknown command $command" ;;
esac
