#!/bin/sh
# Prints the JobSet of a run on GKE; README.md is the manual.
#   sh launch/gke/jobset.sh --accelerator v5e --topology 4x4 --image IMAGE [options] \
#     -- --config configs/llada_ctc.py --workdir gs://BUCKET/run ... >job.yaml
# Options: --slices N, --name NAME, --restarts N, --grace SECONDS, --service-account NAME (of
# Kubernetes), --cpu N and --memory SIZE (requested of each host, 16 and 32Gi), --env NAME=VALUE
# (several times). What stands after -- goes to train.
set -eu

case ${1:-} in
  -h | --help | help)
    sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p;}' "$0"
    exit 0
    ;;
esac

here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=launch/gke/options.sh
. "$here/options.sh"

# yaml WORD: a YAML string that Kubernetes takes literally: it would expand $(NAME), and $$ is $.
yaml() {
  # The x keeps newlines at the end, which $(...) would drop.
  string=$(printf '%sx' "$1" |
    sed -e 's/\\/\\\\/g' -e 's/"/\\"/g' -e 's/\$/$$/g' -e 's/	/\\t/g' |
    awk '{ printf "%s%s", (NR > 1 ? "\\n" : ""), $0 }')
  printf '"%s"' "${string%x}"
}

command_list() {
  for word in "$@"; do
    printf '                    - %s\n' "$(yaml "$word")"
  done
}

env_list() {
  for word in "$@"; do
    printf '                    - name: %s\n                      value: %s\n' \
      "$(yaml "${word%%=*}")" "$(yaml "${word#*=}")"
  done
}

known="--accelerator --topology --slices --name --image --restarts --grace --service-account --env"
known="$known --cpu --memory"
parse_options "$known" "$@"
command=$(eval "command_list sh launch/tpu/supervise.sh python -m jax_mdlm.train $train_arguments")
environment=$(eval "env_list RESTARTS=0 $env")
[ "$slices" -gt 1 ] && host_network=true || host_network=false

cat <<EOF_JOBSET
# $slices x $accelerator $topology: $hosts host(s) of $chips_per_host chips. A node pool per slice:
#   gcloud container node-pools create POOL --cluster=CLUSTER --location=LOCATION \\
#     --machine-type=$machine --tpu-topology=$topology --num-nodes=$hosts
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: $(yaml "$name")
  annotations:
    # a slice is one node pool; pods of two slices must not mix
    alpha.jobset.sigs.k8s.io/exclusive-topology: cloud.google.com/gke-nodepool
spec:
  # its pods and their logs stay for so many seconds after the end
  ttlSecondsAfterFinished: 86400
  # the headless service by which the hosts find each other
  network:
    enableDNSHostnames: true
  failurePolicy:
    # One lost host ends its job, and then all start again: train resumes from its work directory.
    maxRestarts: $restarts
    rules:
      # exit codes 1 and 2 (below): the same again would help nobody
      - action: FailJobSet
        onJobFailureReasons:
          - PodFailurePolicy
  replicatedJobs:
    - name: slice
      replicas: $slices
      template:
        spec:
          parallelism: $hosts
          completions: $hosts
          completionMode: Indexed
          backoffLimit: 0
          podFailurePolicy:
            rules:
              - action: FailJob
                onExitCodes:
                  containerName: train
                  operator: In
                  values: [1, 2]
          template:
            spec:
              restartPolicy: Never
              serviceAccountName: $(yaml "$account")
              # SIGTERM makes train save; this is the time it gets
              terminationGracePeriodSeconds: $grace
              # between slices the node's own network is faster
              hostNetwork: $host_network
              dnsPolicy: ClusterFirstWithHostNet
              nodeSelector:
                cloud.google.com/gke-tpu-accelerator: $selector
                cloud.google.com/gke-tpu-topology: $topology
              containers:
                - name: train
                  image: $(yaml "$image")
                  # supervise.sh says 143 where a stopped run said 0, so that the JobSet starts it
                  # again instead of taking it for finished; restarts are the JobSet's
                  command:
$command
                  env:
$environment
                  ports:
                    - containerPort: 8471 # libtpu, between the hosts of a slice
                    - containerPort: 8080 # libtpu, between slices
                    - containerPort: 8482 # JAX's coordinator
                  securityContext:
                    privileged: true # locked memory for the TPU; newer GKE needs it no more
                  resources:
                    # Without these other pods may be put on the host and take its memory.
                    requests:
                      cpu: $cpu
                      memory: $memory
                      google.com/tpu: $chips_per_host
                    limits:
                      google.com/tpu: $chips_per_host
EOF_JOBSET
