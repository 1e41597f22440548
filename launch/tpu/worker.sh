#!/bin/sh
# What pod.sh does on one worker; runs there, in the copy of the checkout.
#   sh launch/tpu/worker.sh install | idle | start COMMAND ... | stop SECONDS | status
#                           | log LINES [follow]
# Everything about the run is in runs/pod: train.log and the supervisor's pid.
set -eu
cd "$(dirname "$0")/../.."

host=$(hostname)
folder=runs/pod

fail() {
  echo "error: $host: $*" >&2
  exit 2
}

# The pid, where the supervisor is alive. After a reboot the number may be another program's.
supervisor() {
  [ -f "$folder/pid" ] || return 1
  read -r pid <"$folder/pid"
  case $(ps -o args= -p "$pid" 2>/dev/null) in
    *launch/tpu/supervise.sh*) echo "$pid" ;;
    *) return 1 ;;
  esac
}

refuse_while_running() {
  ! pid=$(supervisor) ||
    fail "a run is under way (pid $pid); stop it first: sh launch/tpu/pod.sh stop"
}

# The images of TPU VMs bring an older Python than 3.11: uv fetches one without root.
find_or_fetch_python() {
  if ! find_python >/dev/null 2>&1; then
    PATH=$HOME/.local/bin:$PATH
    command -v uv >/dev/null 2>&1 || python3 -m pip install --quiet --user uv ||
      fail "Python 3.11 or newer is needed and uv could not be installed;" \
        "install python3.12 and run setup again"
    uv python install --quiet 3.12
    PYTHON=$(uv python find 3.12)
  fi
}

case ${1:-} in
  install)
    . launch/env.sh
    find_or_fetch_python
    install tpu,cloud
    echo "$host: ready"
    ;;
  idle)
    refuse_while_running
    ;;
  start)
    shift
    refuse_while_running
    mkdir -p "$folder"
    nohup sh launch/tpu/supervise.sh "$@" >>"$folder/train.log" 2>&1 </dev/null &
    echo $! >"$folder/pid"
    echo "$host: started (pid $!)"
    ;;
  stop)
    if ! pid=$(supervisor); then
      echo "$host: nothing is running"
      exit
    fi
    kill -TERM "$pid"
    waited=0
    while supervisor >/dev/null; do
      [ "$waited" -lt "$2" ] ||
        fail "still saving after $2 s; look into the log, or run stop again to wait longer"
      sleep 1
      waited=$((waited + 1))
    done
    echo "$host: $(tail -n 1 "$folder/train.log")"
    ;;
  status)
    if pid=$(supervisor); then
      echo "$host: running (pid $pid): $(tail -n 1 "$folder/train.log")"
    elif [ -f "$folder/train.log" ]; then
      echo "$host: not running: $(grep '^supervise: ' "$folder/train.log" | tail -n 1)"
    else
      echo "$host: not running: no run was started here"
    fi
    ;;
  log)
    [ -f "$folder/train.log" ] || fail "no log: no run was started here; use run first"
    if [ "${3:-}" = follow ]; then
      exec tail -n "$2" -F "$folder/train.log"
    fi
    tail -n "$2" "$folder/train.log" | sed "s/^/$host: /"
    ;;
  *) fail "worker.sh takes install, idle, start, stop, status or log, got ${1:-nothing}" ;;
esac
