# Sourced by jobset.sh and xpk.sh: their options, and what a topology means on GKE. POSIX sh.
# shellcheck disable=SC2034 # each of the two reads some of the variables

fail() {
  echo "error: $*" >&2
  exit 2
}

accelerator='' topology='' slices=1 name=mdlm image='' restarts=20 grace=600 env=''
account=default cluster='' project='' zone='' dry_run=''
# The smallest host, one v5e chip, has 24 cores and 48 GB.
cpu=16 memory=32Gi

# parse_options KNOWN OPTION ...: sets the variables above; train_arguments is what stands behind
# `--`, as words of shell.
parse_options() {
  known=$1
  shift
  while [ $# -gt 0 ] && [ "$1" != -- ]; do
    option=${1%%=*}
    case " $known " in
      *" $option "*) ;;
      *) fail "$1 is no option here; known are $known, and -- before the arguments of train" ;;
    esac
    case $1 in
      --dry-run) value=yes ;;
      *=*) value=${1#*=} ;;
      *)
        [ $# -ge 2 ] || fail "$1 needs a value: $1 VALUE"
        value=$2
        shift
        ;;
    esac
    shift
    take_option
  done
  [ $# -eq 0 ] || shift
  train_arguments=$(quote "$@")
  check_options
}

take_option() {
  case $option in
    --accelerator) accelerator=$value ;;
    --topology) topology=$value ;;
    --slices) slices=$value ;;
    --name) name=$value ;;
    --image) image=$value ;;
    --restarts) restarts=$value ;;
    --grace) grace=$value ;;
    --service-account) account=$value ;;
    --cpu) cpu=$value ;;
    --memory) memory=$value ;;
    --cluster) cluster=$value ;;
    --project) project=$value ;;
    --zone) zone=$value ;;
    --dry-run) dry_run=$value ;;
    --env)
      case ${value%%=*} in
        *TOKEN* | *SECRET* | *PASSWORD* | *CREDENTIAL* | *_KEY | *KEY_*)
          fail "--env must not carry secrets, got ${value%%=*};" \
            "let the service account read the bucket"
          ;;
        '' | [0-9]* | *[!A-Za-z0-9_]*) fail "--env must be NAME=VALUE, got $value" ;;
      esac
      case $value in *=*) ;; *) fail "--env must be NAME=VALUE, got $value" ;; esac
      env="$env${env:+ }$(quote "$value")"
      ;;
  esac
}

# quote WORD ...: the words as one line of shell.
quote() {
  quoted=''
  for word in "$@"; do
    # The x keeps newlines at the end, which $(...) would drop.
    word=$(printf '%sx' "$word" | sed "s/'/'\\\\''/g")
    quoted="$quoted${quoted:+ }'${word%x}'"
  done
  printf '%s' "$quoted"
}

check_options() {
  [ -n "$topology" ] || fail "--topology is needed, e.g. --topology 4x4"
  [ -n "$image" ] || fail "--image is needed: what launch/gke/Dockerfile builds, README.md step 4"
  case $name in
    [!a-z]* | *[!a-z0-9-]* | *-) fail "--name must be a-z, 0-9 and -, a letter first, got $name" ;;
  esac
  [ "${#name}" -le 40 ] ||
    fail "--name must have at most 40 characters (pods add theirs), got $name"
  positive --slices "$slices"
  positive --grace "$grace"
  positive --cpu "$cpu"
  case $memory in
    [1-9]*[KMGT]i) positive --memory "${memory%?i}" ;;
    *) fail "--memory must be a number with Ki, Mi, Gi or Ti, got $memory" ;;
  esac
  case $restarts in '' | *[!0-9]*) fail "--restarts must be a number, got $restarts" ;; esac
  case " $train_arguments" in
    *" '--config' "* | *" '--config="*) ;;
    *) fail "the arguments of train are needed behind --, e.g. -- --config configs/llada_ctc.py" ;;
  esac
  case " $train_arguments" in
    *" '--workdir' 'gs://"* | *" '--workdir=gs://"*) ;;
    *) fail "--workdir gs://... is needed behind --: a pod's own disk is lost with it" ;;
  esac
  read_topology
}

positive() {
  case $2 in '' | 0* | *[!0-9]*) fail "$1 must be 1 or more, got $2" ;; esac
}

# read_topology: chips, chips_per_host, hosts, selector, machine, device_type from --accelerator and
# --topology. Sources: "Plan TPUs in GKE" and the tables of xpk (system_characteristics.py).
read_topology() {
  case $accelerator in
    v5e | v6e) flat_topology ;;
    v4 | v5p) cubic_topology ;;
    *) fail "--accelerator must be v4, v5e, v5p or v6e, got ${accelerator:-none}" ;;
  esac
  hosts=$((chips / chips_per_host))
  case $accelerator in
    v4) selector=tpu-v4-podslice machine=ct4p-hightpu device_type=v4-$((2 * chips)) ;;
    v5e) selector=tpu-v5-lite-podslice machine=ct5lp-hightpu device_type=v5litepod-$chips ;;
    v5p) selector=tpu-v5p-slice machine=ct5p-hightpu device_type=v5p-$((2 * chips)) ;;
    v6e) selector=tpu-v6e-slice machine=ct6e-standard device_type=v6e-$chips ;;
  esac
  machine=$machine-${chips_per_host}t
  if [ "$slices" -gt 1 ] && [ "$hosts" = 1 ]; then
    fail "several slices must have several hosts each on GKE, $topology has one;" \
      "take 4x4 (v5e, v6e) or 2x2x2 (v4, v5p) or more"
  fi
}

flat_topology() {
  # Up to 8 chips stand in one host: a whole slice is then one pod.
  case $topology in
    1x1) chips=1 chips_per_host=1 ;;
    2x2) chips=4 chips_per_host=4 ;;
    2x4) chips=8 chips_per_host=8 ;;
    4x4) chips=16 chips_per_host=4 ;;
    4x8) chips=32 chips_per_host=4 ;;
    8x8) chips=64 chips_per_host=4 ;;
    8x16) chips=128 chips_per_host=4 ;;
    16x16) chips=256 chips_per_host=4 ;;
    *)
      fail "--topology of $accelerator must be 1x1, 2x2, 2x4, 4x4, 4x8, 8x8, 8x16 or 16x16," \
        "got $topology"
      ;;
  esac
}

cubic_topology() {
  chips_per_host=4
  case $topology in
    2x2x1) chips=4 ;;
    2x2x2) chips=8 ;;
    2x2x4) chips=16 ;;
    2x4x4) chips=32 ;;
    *)
      edge='\([1-9][0-9]*\)'
      cube=$(printf '%s\n' "$topology" | sed -n "s/^${edge}x${edge}x${edge}\$/\1 \2 \3/p")
      [ -n "$cube" ] || not_cubic
      # shellcheck disable=SC2086 # three numbers
      set -- $cube
      for edge in "$@"; do
        [ $((edge % 4)) -eq 0 ] || not_cubic
      done
      [ "$1" -le "$2" ] && [ "$2" -le "$3" ] || not_cubic
      chips=$(($1 * $2 * $3))
      [ "$accelerator" = v4 ] && most=4096 || most=8960
      [ "$chips" -le "$most" ] ||
        fail "a slice of $accelerator has at most $most chips, got $topology"
      ;;
  esac
}

not_cubic() {
  fail "--topology of $accelerator must be 2x2x1, 2x2x2, 2x2x4, 2x4x4 or AxBxC in steps of 4" \
    "with A <= B <= C, got $topology"
}
