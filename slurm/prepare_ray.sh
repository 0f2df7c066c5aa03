#!/bin/bash
# Makes the token store with Ray actors on all nodes of the allocation. The Ray cluster is this job's own: its ports, its
# folder, its token; it ends with the job, and no other Ray of this user is touched.
[[ ${RENDERED:-} ]] || . "$(dirname "$0")/common.sh"

mapfile -t hosts < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
port=$(once -m launcher.attempts port "$RUN_DIR" | tail -n 1) || exit
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$RUN_DIR/jobs/ray-token-$SLURM_JOB_ID RAY_USAGE_STATS_ENABLED=0
tr -dc 0-9a-f </dev/urandom 2>/dev/null | head -c 64 >"$RAY_AUTH_TOKEN_PATH"
export RAY_ADDRESS=${hosts[0]}:$port

folder=/tmp/ray-$SLURM_JOB_ID  # on each node: sockets need a short path on a local disk
nodes=()
end_ray() {
  local code=$?
  kill "${nodes[@]}" 2>/dev/null  # the steps of this job, and with them what they started
  wait "${nodes[@]}" 2>/dev/null
  # shellcheck disable=SC2016  # $0 is the folder
  srun --export=ALL --overlap --ntasks-per-node=1 bash -c 'rm -rf -- "$0"-*' "$folder"
  rm -f -- "$RAY_AUTH_TOKEN_PATH"
  (exit "$code")
  note_end
}
trap end_ray EXIT
trap 'exit 143' TERM

start_ray() {  # HOST, OPTIONS of `ray start`
  local host=$1
  shift
  srun --export=ALL --overlap --nodes=1 --ntasks=1 --nodelist="$host" --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" \
    "${SRUN_CONTAINER[@]}" "${PYTHON[@]}" -m ray.scripts.scripts start --block --node-ip-address="$host" \
    --num-cpus="${SLURM_CPUS_PER_TASK:-1}" --num-gpus=0 --temp-dir="$folder-$host" \
    --dashboard-agent-listen-port=$((port + 1)) "$@" >"$RUN_DIR/logs/ray-$SLURM_JOB_ID-$host.out" 2>&1 &
  nodes+=("$!")
}

start_ray "${hosts[0]}" --head --port="$port" --ray-client-server-port=$((port + 2)) --include-dashboard=false
for host in "${hosts[@]:1}"; do
  start_ray "$host" --address="$RAY_ADDRESS"
done
once -m launcher.ray_nodes "${#hosts[@]}" --seconds 300 || fail "see $RUN_DIR/logs/ray-$SLURM_JOB_ID-*.out"
once -m launcher prepare "$RUN_DIR" &
driver=$!
wait "$driver"
