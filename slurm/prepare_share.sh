#!/bin/bash
# Makes the share of the token store that belongs to this task of an array job.
[[ ${RENDERED:-} ]] || . "$(dirname "$0")/common.sh"

once -m launcher prepare "$RUN_DIR" --share "$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT"
