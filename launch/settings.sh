# shellcheck shell=bash
# Reads and checks the settings file of the launch scripts; they source this.
#
# A settings file is text, never code: a line is NAME=VALUE, and everything
# after the first = is the value as it stands, so spaces, $ and quotes mean
# nothing. Only the names below can be set. Written for bash 3.2 and later.
# shellcheck disable=SC2034  # The scripts use the variables.

PROJECT='' ZONE='' NAME='' ACCELERATOR_TYPE='' RUNTIME_VERSION=''
PROVISIONING='' DATA_DISK='' DATA_DISK_GB='' DATA_DISK_TYPE='' DATA_MOUNT=''
MODEL_DIR='' INSTALL='' PYTHON_VERSION='' LOG_DIR='' RESULTS_DIR=''
POLL_SECONDS='' MAX_STARTS=''
CREATE_FLAG=() COPY=() RUN_ARGUMENT=()

_ONCE=' PROJECT ZONE NAME ACCELERATOR_TYPE RUNTIME_VERSION PROVISIONING
 DATA_DISK DATA_DISK_GB DATA_DISK_TYPE DATA_MOUNT MODEL_DIR INSTALL
 PYTHON_VERSION LOG_DIR RESULTS_DIR POLL_SECONDS MAX_STARTS '

# fail MESSAGE: ends with the status of a faulty configuration.
fail() {
  printf '%s: %s\n' "${0##*/}" "$*" >&2
  exit 2
}

# read_settings FILE: sets the variables above from it.
read_settings() {
  local file=$1 line number=0 name value seen=' '
  [[ -f $file && -r $file ]] ||
    fail "settings file $file cannot be read: copy launch/settings.env.example"
  while IFS= read -r line || [[ -n $line ]]; do
    number=$((number + 1))
    line=${line%$'\r'}
    [[ $line =~ ^[[:space:]]*(#|$) ]] && continue
    [[ $line =~ ^([A-Z_]+)=(.*)$ ]] ||
      fail "$file:$number: not of the form NAME=VALUE: $line"
    name=${BASH_REMATCH[1]} value=${BASH_REMATCH[2]}
    value=${value#"${value%%[![:space:]]*}"}
    value=${value%"${value##*[![:space:]]}"}
    case $value in
      \"*\" | \'*\')
        fail "$file:$number: $name: write the value without quotes" ;;
    esac
    [[ $value =~ [[:cntrl:]] ]] &&
      fail "$file:$number: $name holds a control character: remove it"
    case $name in
      CREATE_FLAG) CREATE_FLAG+=("$value") ;;
      COPY) COPY+=("$value") ;;
      RUN_ARGUMENT) RUN_ARGUMENT+=("$value") ;;
      *)
        [[ ${_ONCE//$'\n'/ } == *" $name "* ]] ||
          fail "$file:$number: unknown setting $name: correct or remove it"
        [[ $seen == *" $name "* ]] &&
          fail "$file:$number: $name is set twice: keep one"
        seen+="$name "
        printf -v "$name" '%s' "$value" ;;
    esac
  done <"$file"
  _fill_in
  _check_tpu "$file"
  _check_storage "$file"
  _check_run "$file"
}

# _fill_in: defaults, which depend on the TPU where Google's tables say so.
_fill_in() {
  local runtime='' disk_type=pd-balanced
  case $ACCELERATOR_TYPE in
    v4-*) runtime=tpu-ubuntu2204-base ;;
    v5litepod-*) runtime=v2-alpha-tpuv5-lite ;;
    v5p-*) runtime=v2-alpha-tpuv5 ;;
    v6e-*) runtime=v2-alpha-tpuv6e disk_type=hyperdisk-balanced ;;
  esac
  : "${RUNTIME_VERSION:=$runtime}" "${DATA_DISK_TYPE:=$disk_type}"
  : "${PROVISIONING:=on-demand}" "${DATA_DISK_GB:=200}"
  : "${DATA_MOUNT:=/mnt/disks/rest_jax}" "${PYTHON_VERSION:=3.12}"
  : "${LOG_DIR:=logs}" "${RESULTS_DIR:=results}"
  : "${POLL_SECONDS:=30}" "${MAX_STARTS:=50}"
}

# _match FILE NAME PATTERN HINT: the setting NAME must match PATTERN, wholly.
_match() {
  local LC_ALL=C value=${!2}
  [[ -n $value ]] || fail "$1: $2 is not set: give $4"
  [[ $value =~ ^($3)$ ]] || fail "$1: $2=$value is not valid: give $4"
}

# _path FILE NAME: an absolute path on the workers, as simple as a path can be.
_path() {
  _match "$1" "$2" '/.*[^/]' 'an absolute path without a / at its end'
  case /${!2}/ in
    */../* | */./*) fail "$1: $2=${!2} is not valid: give a path without .." ;;
  esac
}

# _local_path FILE NAME PATH: it must exist here.
_local_path() {
  [[ -e $3 ]] || fail "$1: $2=$3 is not there: give a path from here"
  [[ $3 != *:* ]] || fail "$1: $2=$3 holds a :, which scp takes for a host"
}

_check_tpu() {
  local file=$1 id='[a-z]([a-z0-9-]{0,61}[a-z0-9])?' flag
  _match "$file" PROJECT '([a-z0-9.-]+:)?[a-z][a-z0-9-]{4,28}[a-z0-9]' \
    'the id of a Google Cloud project'
  _match "$file" ZONE '[a-z]+-[a-z]+[0-9]+-[a-z]' 'one such as us-central1-a'
  _match "$file" NAME "$id" \
    'small letters, digits and -, a letter first, at most 63'
  _match "$file" ACCELERATOR_TYPE 'v[0-9]+[a-z]*-[0-9]+' \
    'one such as v5litepod-8, v5p-8 or v6e-8'
  _match "$file" RUNTIME_VERSION '[a-z0-9][a-z0-9.-]*' \
    "the runtime of $ACCELERATOR_TYPE, such as v2-alpha-tpuv6e"
  _match "$file" PROVISIONING 'on-demand|spot|queued|queued-spot' \
    'on-demand, spot, queued or queued-spot'
  for flag in ${CREATE_FLAG[@]+"${CREATE_FLAG[@]}"}; do
    [[ $flag == --?* ]] ||
      fail "$file: CREATE_FLAG=$flag is not valid: give --FLAG or --FLAG=VALUE"
  done
  [[ -z $DATA_DISK ]] || _match "$file" DATA_DISK "$id" 'the name of a disk'
  _match "$file" DATA_DISK_GB '[1-9][0-9]{1,4}' 'whole gigabytes, 10 to 65536'
  ((DATA_DISK_GB <= 65536)) ||
    fail "$file: DATA_DISK_GB=$DATA_DISK_GB is not valid: give 10 to 65536"
  _match "$file" DATA_DISK_TYPE '[a-z]+(-[a-z]+)*' \
    'one such as pd-balanced or hyperdisk-balanced'
}

_check_storage() {
  local file=$1
  _path "$file" DATA_MOUNT
  if [[ $MODEL_DIR == gs://* ]]; then
    _match "$file" MODEL_DIR 'gs://[a-z0-9][a-z0-9._-]+/.*[^/]' \
      'gs://BUCKET/FOLDER'
    return
  fi
  _path "$file" MODEL_DIR
  if [[ -n $DATA_DISK ]]; then
    [[ $MODEL_DIR == "$DATA_MOUNT"/* ]] ||
      fail "$file: MODEL_DIR=$MODEL_DIR is not on DATA_DISK: give a folder" \
        "below DATA_MOUNT=$DATA_MOUNT"
  elif [[ $PROVISIONING == *spot ]]; then
    fail "$file: DATA_DISK is not set: a pre-empted TPU VM loses its own disk" \
      "and with it MODEL_DIR; give a disk's name, or PROVISIONING=on-demand"
  fi
}

_check_run() {
  local file=$1 argument host gin_file=''
  case $INSTALL in
    *.whl) _local_path "$file" INSTALL "$INSTALL" ;;
    *)
      host=${INSTALL#git+https://}
      [[ ${host%%/*} != *@* ]] ||
        fail "$file: INSTALL holds a user or password: give a URL without one"
      _match "$file" INSTALL 'git\+https://[^@ ]+@[A-Za-z0-9._/-]+' \
        'a .whl file, or git+https://HOST/REPOSITORY@REVISION' ;;
  esac
  _match "$file" PYTHON_VERSION '3\.1[12]' '3.11 or 3.12'
  _match "$file" LOG_DIR '.+' 'a local folder'
  _match "$file" RESULTS_DIR '.+' 'a local folder'
  _match "$file" POLL_SECONDS '[0-9]{1,4}(\.[0-9]+)?' 'seconds'
  _match "$file" MAX_STARTS '[1-9][0-9]{0,3}' 'a whole number from 1 to 9999'
  for argument in ${COPY[@]+"${COPY[@]}"}; do
    _local_path "$file" COPY "$argument"
  done
  for argument in ${RUN_ARGUMENT[@]+"${RUN_ARGUMENT[@]}"}; do
    case $argument in
      --gin_file=?*) gin_file=yes ;;
      --gin.MODEL_DIR=*)
        fail "$file: RUN_ARGUMENT=$argument: set MODEL_DIR=... instead" ;;
      --?*) ;;
      *) fail "$file: RUN_ARGUMENT=$argument is not valid: give one --flag" ;;
    esac
  done
  [[ -n $gin_file ]] ||
    fail "$file: RUN_ARGUMENT is missing: give one line --gin_file=FILE"
}
