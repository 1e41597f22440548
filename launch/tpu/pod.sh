#!/bin/sh
# A run on a Cloud TPU slice, from the first chip to the last log line. README.md is the manual.
#   sh launch/tpu/pod.sh [--dry-run] [--settings FILE] [SETTING=VALUE ...] COMMAND [...]
#
#   create [--spot|--best-effort|--reserved] [--node-count N]   ask for the chips, wait for them
#   setup                       put this checkout on all workers and install it; again = update
#   run TRAIN-ARGUMENTS ...     start `python -m jax_mdlm.train` on all workers, in the background
#   logs [WORKER|all] [--slice N] [--lines N] [--follow]
#   status                      the chips, and what each worker does
#   stop                        all workers save and end
#   resume                      after a preemption: new chips, setup, the same run
#   delete                      give the chips back; the bill ends here
set -eu

here=$(cd "$(dirname "$0")" && pwd)
checkout=$(cd "$here/../.." && pwd)
# shellcheck source=launch/tpu/settings.sh
. "$here/settings.sh"
# shellcheck source=launch/tpu/words.sh
. "$here/words.sh"
# shellcheck source=launch/tpu/slices.sh
. "$here/slices.sh"
# shellcheck source=launch/tpu/workers.sh
. "$here/workers.sh"

usage() {
  sed -n '2,/^set -eu/{ s/^# \{0,1\}//p; }' "$here/pod.sh"
}

dry_run='' settings_file='' overrides=''
while [ $# -gt 0 ]; do
  case $1 in
    --dry-run) dry_run=yes ;;
    --settings)
      [ $# -ge 2 ] || fail "--settings needs a file: --settings FILE"
      settings_file=$2
      shift
      ;;
    -h | --help)
      usage
      exit
      ;;
    [A-Z]*=*) overrides="$overrides$(words "$1") " ;;
    -*) fail "$1 is no option of pod.sh; options of a command stand behind it, see --help" ;;
    *) break ;;
  esac
  shift
done
[ $# -gt 0 ] || fail "a command is needed: create, setup, run, logs, status, stop, resume or delete"
command=$1
shift

case $command in
  create | setup | run | logs | status | stop | resume | delete) ;;
  *) fail "$command is no command; use create, setup, run, logs, status, stop, resume or delete" ;;
esac
load_settings
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

case $command in
  create)
    parse_capacity "$@"
    create_slices
    ;;
  run | logs) "${command}_on_workers" "$@" ;;
  *)
    [ $# -eq 0 ] || fail "$command takes no arguments, got $(words "$@")"
    case $command in
      setup) setup_workers ;;
      status) show_status ;;
      stop) stop_workers ;;
      resume) resume_run ;;
      delete) delete_slices ;;
    esac
    ;;
esac
