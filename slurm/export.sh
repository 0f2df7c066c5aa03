#!/bin/bash
# Writes the model as a Hugging Face folder, and the report. Under salloc: RUN_DIR=runs/NAME bash slurm/export.sh
[[ ${RENDERED:-} ]] || . "$(dirname "$0")/common.sh"

once -m launcher export "$RUN_DIR" || exit
once -m launcher report "$RUN_DIR"
