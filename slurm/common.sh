#!/bin/bash
# What all jobs begin with. Sourced by the bodies beside it; the launcher puts it into each script that it submits.
#
#   PYTHON           the command that is Python with shardtune          (python)
#   SRUN_CONTAINER   options of srun that run a step in a container     (none)
#   MODULES, CONDA   environment modules to load, a conda environment   (none)
#   SECRETS          lines NAME=value, readable by its owner alone      (~/.config/shardtune/secrets.env)
set -uo pipefail
umask 077
[[ -v PYTHON ]] || PYTHON=(python)
[[ -v SRUN_CONTAINER ]] || SRUN_CONTAINER=()
[[ -v MODULES ]] || MODULES=()
SECRETS=${SECRETS:-$HOME/.config/shardtune/secrets.env}

say() { printf '[%(%F %T)T] %s\n' -1 "$*"; }
fail() { say "error: $*" >&2; exit 1; }

# Variables that must not be in a script, an argument or a log. Values are taken as they are: nothing is evaluated.
secrets=()
read_secrets() {
  [[ -e $SECRETS ]] || return 0
  [[ $(stat -Lc %a "$SECRETS") == *00 ]] || fail "$SECRETS can be read by others; run chmod 600 on it"
  local line number=0
  while IFS= read -r line || [[ $line ]]; do
    number=$((number + 1))
    [[ $line =~ ^[[:space:]]*(#.*)?$ ]] && continue
    [[ $line =~ ^[A-Za-z_][A-Za-z0-9_]*= ]] || fail "$SECRETS: line $number is not NAME=value"
    export "${line?}"
    secrets+=(--env "${line%%=*}")
  done <"$SECRETS"
}

enter_environment() {
  if [[ ${#MODULES[@]} -gt 0 ]]; then
    # shellcheck source=/dev/null
    [[ $(type -t module) == function ]] || . /etc/profile
    [[ $(type -t module) == function ]] || fail "this node has no command module, to load ${MODULES[*]}"
    module load "${MODULES[@]}" || fail "cannot load the modules ${MODULES[*]}"
  fi
  if [[ ${CONDA:-} ]]; then
    # shellcheck source=/dev/null
    . "$(conda info --base)/etc/profile.d/conda.sh" || fail "there is no conda on PATH, to enter $CONDA"
    conda activate "$CONDA" || fail "cannot enter conda's $CONDA"
  fi
}

# Docker hands on no variable by itself, and would write files as the user of the image.
enter_docker() {
  [[ ${PYTHON[0]} == docker ]] || return 0
  PYTHON=(docker run --user "$(id -u):$(id -g)" --env HOME=/tmp "${secrets[@]}" "${PYTHON[@]:2}")
}

# A command of shardtune, or a module of its, once, on this node.
once() {
  if [[ ${#SRUN_CONTAINER[@]} -gt 0 ]]; then
    srun --export=ALL --nodes=1 --ntasks=1 "${SRUN_CONTAINER[@]}" "${PYTHON[@]}" "$@"
  else
    "${PYTHON[@]}" "$@"
  fi
}

# How the job ended, for `shardtune status`: schedulers forget within minutes.
note_end() {
  local code=$? task=${SLURM_ARRAY_TASK_ID:+-$SLURM_ARRAY_TASK_ID}
  mkdir -p "$RUN_DIR/jobs/ends"
  printf '{"job": "%s", "code": %d, "ended": "%(%FT%T%z)T"}\n' "${SLURM_JOB_ID:-}" "$code" -1 >"$RUN_DIR/jobs/ends/$STAGE$task.json"
}

[[ -n ${RUN_DIR:-} ]] || fail "RUN_DIR is not set; set it to the folder of the run"
[[ -e $RUN_DIR/run.yaml ]] || fail "$RUN_DIR has no run.yaml; make it with shardtune launch, or shardtune plan"
enter_environment
read_secrets
enter_docker
STAGE=${STAGE:-$(basename "$0" .sh)}
trap note_end EXIT
