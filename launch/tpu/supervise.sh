#!/bin/sh
# Runs a command and, when it is cut down, runs it again: a worker of a pod keeps to its run without
# systemd or tmux. train resumes by itself from its work directory.
#   RESTARTS=20 PAUSE=90 sh launch/tpu/supervise.sh COMMAND [ARGUMENT ...]
#
# SIGTERM is passed on once (a second one would cut the save short) and ends the supervisor when the
# command has ended. Its own exit code: that of the command, but 143 where a stopped command said
# 0: it has saved, not finished, and Kubernetes must not count that as a finished job.
#
# Codes of the command: 0 finished; 1 the run failed, 2 a mistake to mend, 130 Ctrl-C: the same
# again would help nobody; any other (a signal, 75 for a lost peer): again, at most RESTARTS times.
#
# PAUSE seconds lie between: the peers of a process that died need up to a minute to notice. One
# that came back sooner would be refused by the coordinator of the run that is about to end.
set -u

: "${RESTARTS:=20}" "${PAUSE:=90}"
child='' stopping='' passed_on=''

pass_on() {
  if [ -n "$stopping" ] && [ -n "$child" ] && [ -z "$passed_on" ]; then
    passed_on=yes
    kill -TERM "$child" 2>/dev/null
  fi
}
trap 'stopping=yes; pass_on' TERM INT

say() {
  echo "supervise: $(date -u +%Y-%m-%dT%H:%M:%SZ) $*"
}

restarts=0
while :; do
  if [ -n "$stopping" ]; then
    say "stopped before a start"
    exit 143
  fi
  say "start $restarts of at most $RESTARTS restarts: $*"
  "$@" &
  child=$!
  pass_on # a signal may have come before there was a child
  wait "$child"
  code=$?
  # A trapped signal ends `wait` early; the child may still be saving.
  while kill -0 "$child" 2>/dev/null; do
    wait "$child"
    code=$?
  done
  child=''
  if [ -n "$stopping" ]; then
    say "stopped; the command ended with code $code"
    [ "$code" -ne 0 ] || code=143
    exit "$code"
  fi
  case $code in
    0)
      say "finished"
      exit 0
      ;;
    1 | 2 | 130)
      say "ended with code $code, which a restart does not mend"
      exit "$code"
      ;;
  esac
  if [ "$restarts" -ge "$RESTARTS" ]; then
    say "ended with code $code after $restarts restarts, no more are allowed"
    exit "$code"
  fi
  restarts=$((restarts + 1))
  say "ended with code $code; again in $PAUSE s"
  sleep "$PAUSE" &
  wait $! || kill $! 2>/dev/null # a stop cuts the pause short
done
