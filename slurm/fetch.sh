#!/bin/bash
# Downloads what the run needs and pins it. Under salloc: RUN_DIR=runs/NAME bash slurm/fetch.sh
[[ ${RENDERED:-} ]] || . "$(dirname "$0")/common.sh"

once -m launcher fetch "$RUN_DIR"
