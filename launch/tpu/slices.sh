# Sourced by pod.sh: the queued resource that holds the slice or slices. POSIX sh.

# queued VERB ...: a gcloud call on the queued resource.
queued() {
  verb=$1
  shift
  call gcloud compute tpus queued-resources "$verb" "$NAME" \
    "--project=$PROJECT" "--zone=$ZONE" "$@"
}

# read_state: sets STATE (ABSENT where there is none), BY and REASON; 1 where gcloud failed.
read_state() {
  STATE='' BY='' REASON=''
  fields=state.state,state.stateInitiator,state.failedData.error.message
  set -- "--format=value[separator=\"|\"]($fields)"
  if [ -n "$dry_run" ]; then
    queued describe "$@"
    return
  fi
  if ! queued describe "$@" >"$scratch/state" 2>"$scratch/complaint"; then
    grep -q NOT_FOUND "$scratch/complaint" || return 1
    STATE=ABSENT
    return
  fi
  IFS='|' read -r STATE BY REASON <"$scratch/state" || [ -n "$STATE" ]
}

need_state() {
  read_state || fail "gcloud could not describe $NAME: $(tail -n 1 "$scratch/complaint")"
}

# parse_capacity OPTION ...: what `create` takes; shorthands for CAPACITY and NODE_COUNT.
parse_capacity() {
  while [ $# -gt 0 ]; do
    case $1 in
      --spot | --best-effort | --reserved) CAPACITY=${1#--} ;;
      --node-count=*) NODE_COUNT=${1#*=} ;;
      --node-count)
        [ $# -ge 2 ] || fail "--node-count needs a number: --node-count N"
        NODE_COUNT=$2
        shift
        ;;
      *) fail "create takes --spot, --best-effort, --reserved and --node-count N, got $1" ;;
    esac
    shift
  done
  check_settings
}

need_type() {
  need TYPE "the accelerator type of a slice, e.g. v5litepod-16, v4-32, v5p-32 or v6e-16"
  runtime=$RUNTIME # RUNTIME stays as it was set: another TYPE may follow
  [ -n "$runtime" ] || runtime=$(runtime_for "$TYPE")
}

create_slices() {
  need_type
  need_state
  case $STATE in
    '' | ABSENT) request_slices ;;
    FAILED | SUSPENDED | SUSPENDING)
      fail "$NAME exists and is $STATE; get new chips by: sh launch/tpu/pod.sh resume"
      ;;
    *) note "$NAME exists, its state is $STATE" ;;
  esac
  wait_until_active
}

request_slices() {
  # best effort is not in the released commands
  [ "$CAPACITY" = best-effort ] && track=alpha || track=''
  set -- "--project=$PROJECT" "--zone=$ZONE" "--accelerator-type=$TYPE" "--runtime-version=$runtime"
  if [ "$NODE_COUNT" = 1 ]; then
    set -- "$@" "--node-id=$NAME"
  else
    set -- "$@" "--node-count=$NODE_COUNT" "--node-prefix=$NAME"
  fi
  [ "$CAPACITY" = on-demand ] || set -- "$@" "--$CAPACITY"
  [ -z "$VALID_FOR" ] || set -- "$@" "--valid-until-duration=$VALID_FOR"
  # shellcheck disable=SC2086 # flags of your own are split at spaces
  call gcloud $track compute tpus queued-resources create "$NAME" "$@" $CREATE_FLAGS ||
    fail "gcloud refused to create $NAME, see above; nothing was created"
  if [ -z "$dry_run" ]; then
    mkdir -p "$memory"
    for name in TYPE RUNTIME NODE_COUNT CAPACITY VALID_FOR CREATE_FLAGS; do
      eval "printf '%s=%s\n' $name \"\$$name\""
    done >"$memory/created"
  fi
}

wait_until_active() {
  [ -z "$dry_run" ] || return 0
  shown='' failures=0
  while :; do
    if read_state; then
      failures=0
      case $STATE in
        ACTIVE)
          note "$NAME is ACTIVE; every minute costs until: sh launch/tpu/pod.sh delete"
          return
          ;;
        FAILED)
          fail "$NAME is FAILED: ${REASON:-no reason given};" \
            "mend it, then: sh launch/tpu/pod.sh resume"
          ;;
        SUSPENDING | SUSPENDED)
          fail "$NAME is $STATE (by ${BY:-unknown}): the chips were taken away;" \
            "ask again by: sh launch/tpu/pod.sh resume"
          ;;
        ABSENT | DELETING) fail "$NAME is $STATE: somebody deleted it; begin again with create" ;;
      esac
      [ "$STATE" = "$shown" ] ||
        note "$NAME is $STATE; asking every $POLL s, Ctrl-C keeps the request"
      shown=$STATE
    else
      # A network that hiccups must not end a wait of hours.
      failures=$((failures + 1))
      [ "$failures" -lt 5 ] ||
        fail "gcloud could not describe $NAME five times: $(tail -n 1 "$scratch/complaint")"
    fi
    sleep "$POLL"
  done
}

delete_slices() {
  queued delete --force --quiet ||
    fail "gcloud could not delete $NAME, see above; it may still cost"
  [ -n "$dry_run" ] || rm -f "$memory/created"
  note "$NAME is deleted; checkpoints and logs in the work directory stay"
}

# resume_run: whatever became of the chips, ends with the remembered run on all workers.
resume_run() {
  [ -f "$memory/run" ] ||
    fail "no run of $NAME was started from this checkout; use create, setup, run"
  need_type
  need_state
  while [ "$STATE" = SUSPENDING ] || [ "$STATE" = DELETING ]; do
    note "$NAME is $STATE"
    sleep "$POLL"
    need_state
  done
  case $STATE in
    '' | FAILED | SUSPENDED) # a dry run shows the longest way
      queued delete --force --quiet || fail "gcloud could not delete the lost $NAME, see above"
      request_slices
      ;;
    ABSENT) request_slices ;;
  esac
  wait_until_active
  stop_workers # a worker that restarted left the others waiting for it
  setup_workers
  start_run "$(cat "$memory/run")"
}
