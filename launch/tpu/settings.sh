# Sourced by pod.sh: where settings come from. POSIX sh; pod.env.example says what each one means.
#
# The later wins: environment, settings file, what `create` made (so that resume asks for the same
# chips), SETTING=VALUE words on the command line.

SETTINGS="PROJECT ZONE NAME TYPE RUNTIME NODE_COUNT CAPACITY VALID_FOR CREATE_FLAGS SSH_FLAGS \
WORKDIR SOURCE REVISION PASS_ENV POLL GRACE"

# assign SETTING=VALUE WHERE
assign() {
  case " $SETTINGS " in
    *" ${1%%=*} "*) ;;
    *) fail "$2: ${1%%=*} is no setting; known are $SETTINGS" ;;
  esac
  value=${1#*=}
  case $value in
    \"*\")
      value=${value#\"}
      value=${value%\"}
      ;;
  esac
  eval "${1%%=*}=\$value" # the name was found in the list above
}

# read_settings FILE: lines SETTING=VALUE. They are read, not executed.
read_settings() {
  where=$1
  while IFS= read -r entry || [ -n "$entry" ]; do
    case $entry in
      '' | '#'*) ;;
      *=*) assign "$entry" "$where" ;;
      *) fail "$where: a line must be SETTING=VALUE or a comment, got $entry" ;;
    esac
  done <"$1"
}

# The SETTING=VALUE words of the command line; pod.sh quoted them.
read_overrides() {
  eval "assign_words $overrides"
}

assign_words() {
  for entry in "$@"; do
    assign "$entry" "command line"
  done
}

load_settings() {
  if [ -n "$settings_file" ]; then
    [ -f "$settings_file" ] ||
      fail "settings file $settings_file does not exist; copy pod.env.example"
    read_settings "$settings_file"
  elif [ -f "$here/pod.env" ]; then
    read_settings "$here/pod.env"
  fi
  read_overrides
  : "${PROJECT:=}" "${ZONE:=}" "${NAME:=}"
  need PROJECT "the id of your Google Cloud project"
  need ZONE "a zone that has the chips, e.g. us-west4-a"
  need NAME "a name for the slice, e.g. mdlm"
  memory=$checkout/runs/tpu/$NAME
  if [ "$command" != create ] && [ -f "$memory/created" ]; then
    read_settings "$memory/created"
    read_overrides
  fi
  : "${NODE_COUNT:=1}" "${CAPACITY:=on-demand}" "${VALID_FOR:=}" "${POLL:=30}" "${GRACE:=900}"
  : "${CREATE_FLAGS:=}" "${SSH_FLAGS:=}" "${WORKDIR:=}" "${SOURCE:=}" "${REVISION:=HEAD}"
  : "${TYPE:=}" "${RUNTIME:=}" "${PASS_ENV:=JAX_COMPILATION_CACHE_DIR LIBTPU_INIT_ARGS}"
  check_settings
}

# need SETTING MEANING
need() {
  eval "[ -n \"\${$1:-}\" ]" ||
    fail "$1 is not set: $2; put $1=... into launch/tpu/pod.env (copy pod.env.example)"
}

check_settings() {
  case $NAME in
    [!a-z]* | *[!a-z0-9-]*) fail "NAME must be a-z, 0-9 and -, a letter first, got $NAME" ;;
  esac
  case $NODE_COUNT in
    '' | 0* | *[!0-9]*) fail "NODE_COUNT must be 1 (one slice) or more, got $NODE_COUNT" ;;
  esac
  case $CAPACITY in
    on-demand | spot | best-effort | reserved) ;;
    *) fail "CAPACITY must be on-demand, spot, best-effort or reserved, got $CAPACITY" ;;
  esac
  # A token in a URL or a variable would be seen by `ps` and stand in gcloud's log files.
  case $SOURCE in
    *://*@*)
      fail "SOURCE must not carry a user or token;" \
        "make the revision public or copy this checkout"
      ;;
  esac
  for name in $PASS_ENV; do
    case $name in
      *TOKEN* | *SECRET* | *PASSWORD* | *CREDENTIAL* | *_KEY | *KEY_*)
        fail "PASS_ENV must not name secrets, got $name;" \
          "let the slice's service account read the bucket"
        ;;
    esac
  done
}

# runtime_for TYPE: the software version that Cloud TPU names for JAX.
runtime_for() {
  case $1 in
    v4-*) echo tpu-ubuntu2204-base ;;
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v6e-*) echo v2-alpha-tpuv6e ;;
    *) fail "TYPE must begin with v4-, v5litepod-, v5p- or v6e-, got $1; or set RUNTIME too" ;;
  esac
}
