# Sourced by pod.sh: what is done on the machines of the slices, through gcloud's ssh. POSIX sh.

again="mend it and run the same command again"

# nodes: the names of the slices, as Cloud TPU makes them from the prefix.
nodes() {
  if [ "$NODE_COUNT" = 1 ]; then
    echo "$NAME"
  else
    index=0
    while [ "$index" -lt "$NODE_COUNT" ]; do
      echo "$NAME-$index"
      index=$((index + 1))
    done
  fi
}

# on_node NODE WORKER LINE: runs a shell line on a worker, or on "all" of them at once.
on_node() {
  # shellcheck disable=SC2086 # flags of your own are split at spaces
  call gcloud compute tpus tpu-vm ssh "$1" "--project=$PROJECT" "--zone=$ZONE" \
    "--worker=$2" "--command=$3" $SSH_FLAGS
}

copy_to_node() {
  # shellcheck disable=SC2086 # flags of your own are split at spaces
  call gcloud compute tpus tpu-vm scp "$2" "$1:$3" "--project=$PROJECT" "--zone=$ZONE" \
    --worker=all $SSH_FLAGS
}

# everywhere WHAT REMEDY FUNCTION [ARGUMENT ...]: FUNCTION NODE ARGUMENT ... for all slices at once.
everywhere() {
  what=$1 remedy=$2
  shift 2
  if [ "$NODE_COUNT" = 1 ] || [ -n "$dry_run" ]; then
    for node in $(nodes); do
      on_one "$node" "$@"
    done
  else
    for node in $(nodes); do
      on_one "$node" "$@" &
    done
    wait
  fi
  [ ! -s "$scratch/failed" ] ||
    fail "$what failed on $(sort "$scratch/failed" | tr '\n' ' ')- see above which worker; $remedy"
}

on_one() {
  one=$1 function=$2
  shift 2
  "$function" "$one" "$@" || echo "$one" >>"$scratch/failed"
}

on_all_workers() {
  on_node "$1" all "$2"
}

setup_workers() {
  # A run that is under way is not touched: it would start again with other code.
  busy='if test -f jax_mdlm/launch/tpu/worker.sh; then sh jax_mdlm/launch/tpu/worker.sh idle; fi'
  if [ -n "$SOURCE" ]; then
    fetch=$(words git fetch --quiet --depth 1 "$SOURCE" "$REVISION")
    fetch="git init --quiet jax_mdlm && cd jax_mdlm && $fetch"
    fetch="$fetch && git checkout --quiet --force --detach FETCH_HEAD"
    fetch="$fetch && git clean --quiet -fd && cd .."
  else
    pack_checkout
    everywhere copying "$again" copy_to_node "$scratch/jax_mdlm.tgz" jax_mdlm.tgz
    fetch="mkdir -p jax_mdlm && find jax_mdlm -mindepth 1 -maxdepth 1"
    fetch="$fetch ! -name .venv ! -name runs -exec rm -rf {} +"
    fetch="$fetch && tar -xzf jax_mdlm.tgz -C jax_mdlm && rm jax_mdlm.tgz"
  fi
  everywhere setup "$again" on_all_workers \
    "$busy && $fetch && sh jax_mdlm/launch/tpu/worker.sh install"
}

# pack_checkout: tracked files as they are on disk, and new *.py files (a config of your own).
# Nothing else that lies around, such as keys and data, leaves this machine.
pack_checkout() {
  cd "$checkout" || exit
  git rev-parse --git-dir >/dev/null 2>&1 ||
    fail "$checkout is no git checkout; clone the repository, or set SOURCE to its URL"
  {
    git -c core.quotePath=off ls-files
    git -c core.quotePath=off ls-files --others --exclude-standard -- '*.py'
  } | while IFS= read -r file; do
    [ ! -f "$file" ] || printf '%s\n' "$file"
  done >"$scratch/files"
  COPYFILE_DISABLE=1 tar -czf "$scratch/jax_mdlm.tgz" -T "$scratch/files"
}

run_on_workers() {
  case " $* " in
    *" --workdir "* | *" --workdir="*) ;;
    *)
      need WORKDIR "where checkpoints go, e.g. gs://BUCKET/run"
      set -- --workdir "$WORKDIR" "$@"
      ;;
  esac
  case " $* " in
    *" --workdir gs://"* | *" --workdir=gs://"*) ;;
    *) fail "--workdir must be a gs:// path: all workers write into it and it outlives the slice" ;;
  esac
  case " $* " in
    *" --config "* | *" --config="*) ;;
    *) fail "run needs the arguments of train, e.g. --config configs/llada_ctc.py" ;;
  esac
  # Words of the form NAME=VALUE in front of the command become its environment.
  set -- .venv/bin/python -m jax_mdlm.train "$@"
  for name in $PASS_ENV; do
    eval "[ -z \"\${$name+set}\" ] || set -- \"$name=\$$name\" \"\$@\""
  done
  run=$(words env "$@")
  start_run "$run"
  if [ -z "$dry_run" ]; then # after the start: one that was refused is not what resume repeats
    mkdir -p "$memory"
    printf '%s\n' "$run" >"$memory/run"
  fi
}

# start_run LINE: the run as a line of shell, `env NAME=VALUE ... COMMAND ...`.
start_run() {
  everywhere run "mend it, stop the workers that did start, then run again" \
    on_all_workers "cd jax_mdlm && sh launch/tpu/worker.sh start $1"
  note "running on all workers of $NAME; see: sh launch/tpu/pod.sh logs --follow"
}

logs_on_workers() {
  worker=0 slice=0 lines=50 follow=''
  while [ $# -gt 0 ]; do
    case $1 in
      all) worker=all ;;
      --follow) follow=follow ;;
      --slice | --lines)
        [ $# -ge 2 ] || fail "$1 needs a number: $1 N"
        case $2 in '' | *[!0-9]*) fail "$1 must be a number, got $2" ;; esac
        [ "$1" = --slice ] && slice=$2 || lines=$2
        shift
        ;;
      '' | *[!0-9]*)
        fail "logs takes a worker's number or all, --slice N, --lines N, --follow, got $1"
        ;;
      *) worker=$1 ;;
    esac
    shift
  done
  [ "$slice" -lt "$NODE_COUNT" ] ||
    fail "--slice must be below NODE_COUNT ($NODE_COUNT), got $slice"
  node=$(nodes | sed -n "$((slice + 1))p")
  on_node "$node" "$worker" "sh jax_mdlm/launch/tpu/worker.sh log $lines $follow" ||
    fail "no log of worker $worker of $node could be read, see above; was setup and run done?"
}

show_status() {
  need_state
  [ -n "$dry_run" ] || echo "$NAME: $STATE${REASON:+ ($REASON)}"
  case $STATE in
    '' | ACTIVE)
      everywhere status "$again" on_all_workers "$(if_set_up status)"
      ;;
    ABSENT) note "create it by: sh launch/tpu/pod.sh create" ;;
    SUSPENDED | FAILED) note "ask for new chips by: sh launch/tpu/pod.sh resume" ;;
  esac
}

stop_workers() {
  everywhere stop "$again" on_all_workers "$(if_set_up "stop $GRACE")"
}

# if_set_up COMMAND: a shell line that also works on a worker that setup has not seen.
if_set_up() {
  echo "if test -f jax_mdlm/launch/tpu/worker.sh; then sh jax_mdlm/launch/tpu/worker.sh $1; fi"
}
