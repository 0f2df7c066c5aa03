#!/bin/bash
# Makes the token store, or finishes what shares made. Under salloc: RUN_DIR=runs/NAME bash slurm/prepare.sh
[[ ${RENDERED:-} ]] || . "$(dirname "$0")/common.sh"

once -m launcher prepare "$RUN_DIR"
