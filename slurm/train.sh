#!/bin/bash
# Trains on all nodes of the allocation: one task per rank, started by srun alone. When it is asked to stop (the time
# limit comes near, a preemption), all ranks save at the same step and leave with 85, and the job goes back into the
# queue. Under salloc: RUN_DIR=runs/NAME bash slurm/train.sh
[[ ${RENDERED:-} ]] || . "$(dirname "$0")/common.sh"

stop_file=$RUN_DIR/stop
rm -f -- "$stop_file"
asked=
# shellcheck disable=SC2317  # traps call it
ask_to_stop() {
  asked=$1
  say "$1: asking the ranks to save and stop"
  : >"$stop_file"
}
trap 'ask_to_stop USR1' USR1
trap 'ask_to_stop TERM' TERM

me=$SLURM_JOB_ID  # of an array, the number of one task is also that of the whole array
[[ ${SLURM_ARRAY_TASK_ID:-} ]] && me=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
mapfile -t hosts < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
limit=${SLURM_JOB_END_TIME:-}  # newer Slurm says it; 22.05 has to be asked
[[ $limit ]] || { limit=$(squeue -h -j "$me" -o %e) && [[ $limit ]] && limit=$(date -d "$limit" +%s 2>/dev/null); } || limit=
start=$(once -m launcher.attempts begin "$RUN_DIR" --limit "${limit:-0}") || exit
read -r MASTER_PORT SHARDTUNE_DEADLINE <<<"$(tail -n 1 <<<"$start")"
export MASTER_PORT SHARDTUNE_DEADLINE MASTER_ADDR=${hosts[0]} WORLD_SIZE=$SLURM_NTASKS PYTHONUNBUFFERED=1
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}
once -m launcher plan "$RUN_DIR" --ranks "$WORLD_SIZE" || exit

say "$WORLD_SIZE ranks on ${hosts[*]}, port $MASTER_PORT, start ${SLURM_RESTART_COUNT:-0}"
cpus=${SLURM_CPUS_PER_TASK:+--cpus-per-task=$SLURM_CPUS_PER_TASK}  # srun does not take it over from sbatch
# srun tells the highest code of its tasks, and once one is bad it ends all of them by SIGTERM. Slurm may deliver that
# when the step is over, to the step of the same number in the next start. So tasks leave with 0 if they were asked to
# stop (85) or a SIGTERM to all ended them (143): status.json says the rest, and srun tells how the one that failed did.
# shellcheck disable=SC2016  # RANK, LOCAL_RANK, all and code are each task's own
srun --export=ALL --kill-on-bad-exit=1 --wait=300 --label --unbuffered ${cpus:+"$cpus"} "${SRUN_CONTAINER[@]}" \
  bash -c 'export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID all=; trap all=1 TERM; trap : USR1 HUP INT
    "$@"; code=$?; [[ $code == 85 || $all$code == 1143 ]] && code=0; exit "$code"' _ \
  "${PYTHON[@]}" -m sft.train "$RUN_DIR" --resume &
step=$!
code=0
wait "$step" || code=$?
while kill -0 "$step" 2>/dev/null; do  # a signal ends `wait`, not the step
  code=0
  wait "$step" || code=$?
done

say "the ranks ended with $code"
next=$(once -m launcher.attempts end "$RUN_DIR" --code "$code" --asked "${asked:-no}") || exit "$code"
tail -n 1 <<<"$next"
[[ $(tail -n 1 <<<"$next") != finished* ]] || exit 0  # whatever srun did to ranks that took long to go
((code)) || code=85
# What Slurm ends before the limit is cancelled, and must not come back, or preempted, and goes back by Slurm itself.
state=$(squeue -h -t all -j "$me" -o %T) || state=
[[ $limit && $(date +%s) -ge $limit ]] && state=TIMEOUT
if [[ $(tail -n 1 <<<"$next") == requeue* && $state != COMPLETING ]]; then
  scontrol requeue "$me" || fail "cannot go back into the queue; shardtune launch $RUN_DIR goes on"
  sleep 300  # Slurm ends this script
fi
exit "$code"
