#!/usr/bin/env bash
# Follows a run that was started earlier, as run.sh does.
#
#   launch/watch.sh SETTINGS [--dry-run]
set -euo pipefail
here=$(dirname "${BASH_SOURCE[0]}")
# shellcheck source=launch/tpu.sh
. "$here/tpu.sh"
# shellcheck source=launch/follow.sh
. "$here/follow.sh"
start_script "$@"
trap say_what_is_left EXIT
ready_workers
WHAT_GOES_ON="if a run is going on on $NAME, it goes on"
follow_run
