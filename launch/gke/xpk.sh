#!/bin/sh
# The same run through xpk, for clusters that xpk made (with Kueue): README.md, "With xpk".
#   sh launch/gke/xpk.sh --cluster C --project P --zone Z --accelerator v5e --topology 4x4 \
#     --image IMAGE [--slices N --name NAME --restarts N --grace SECONDS --env NAME=VALUE] \
#     [--dry-run] -- --config configs/llada_ctc.py --workdir gs://BUCKET/run ...
set -eu

here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=launch/gke/options.sh
. "$here/options.sh"

known="--cluster --project --zone --accelerator --topology --slices --name --image --restarts"
parse_options "$known --grace --env --dry-run" "$@"
for option in cluster project zone; do
  eval "[ -n \"\$$option\" ]" || fail "--$option is needed: that of the cluster that xpk made"
done

# xpk pastes the command into a block of YAML for bash, where Kubernetes expands $(NAME).
case $train_arguments in
  *\$* | *"
"*) fail "xpk cannot carry \$ or newlines in arguments; use jobset.sh for them" ;;
esac
# exec: xpk passes SIGTERM to the process that it started. Its JobSet takes exit codes below 127 for
# mistakes that no restart mends; a lost peer is 75, hence --restart-on-user-code-failure.
train="sh launch/tpu/supervise.sh python -m jax_mdlm.train $train_arguments"
set -- workload create "--workload=$name" "--cluster=$cluster" "--project=$project" "--zone=$zone" \
  "--tpu-type=$device_type" "--num-slices=$slices" "--docker-image=$image" \
  "--max-restarts=$restarts" "--termination-grace-period-seconds=$grace" \
  "--restart-on-user-code-failure" \
  "--command=exec env RESTARTS=0 $train"

env_flags() {
  for word in "$@"; do
    printf ' %s' "$(quote "--env=$word")"
  done
}
eval "set -- \"\$@\" $(eval "env_flags $env")"

if [ -n "$dry_run" ]; then
  echo "xpk $(quote "$@")"
else
  command -v xpk >/dev/null 2>&1 || fail "xpk is not installed; pip install xpk, or use jobset.sh"
  exec xpk "$@"
fi
