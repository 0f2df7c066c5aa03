#!/bin/bash
# Each node looks at itself and at its neighbours; what it finds is written below RUN_DIR.
[[ ${RENDERED:-} ]] || . "$(dirname "$0")/common.sh"

mapfile -t hosts < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
MASTER_PORT=$(once -m launcher.attempts port "$RUN_DIR" | tail -n 1) || exit
NODES=$(IFS=,; echo "${hosts[*]}")
printf '%s\n' "${hosts[@]}" >"$RUN_DIR/hosts"
export MASTER_PORT NODES MASTER_ADDR=${hosts[0]}
# shellcheck disable=SC2016  # RANK is each task's own
srun --export=ALL --wait=0 --kill-on-bad-exit=0 --ntasks-per-node=1 "${SRUN_CONTAINER[@]}" \
  bash -c 'export RANK=$SLURM_NODEID; exec "$@"' _ "${PYTHON[@]}" -m launcher.node_check "$RUN_DIR"
