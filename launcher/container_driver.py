"""Runs in a container as one job: the stages of a run, one after the other, on this machine alone.

    python -m launcher.container_driver --runs FOLDER --stages prepare,train,export --ranks 8 --seconds 86400

The run's files come in a variable (`launcher.environment.FILES_VARIABLE`). Before the container's time is over, or
when it is asked to end, training saves and leaves with 85; started again, it goes on.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

from data_tools.errors import UserError
from launcher import attempts
from launcher.config import RUN_FILE, RunConfig
from launcher.driver import begin, run_stages, shardtune
from launcher.environment import files_given, set_deadline
from launcher.jobs import STAGES
from sft.exits import FAILED


def run_all(runs: Path, stages: list[str], ranks: int, until: float) -> int:
    """Unpack the files and run the stages; returns the exit code.

    Args:
        until: when the container is ended, in seconds since the epoch.
    """

    def train(config: RunConfig) -> int:
        lead = config.cluster.lead or attempts.lead_seconds(config.folder)
        set_deadline(until - min(lead, (until - time.time()) / 2))
        return shardtune("train", config.folder, "--resume", "--ranks", ranks)

    with tempfile.TemporaryDirectory() as folder:
        for name, text in files_given().items():
            (Path(folder) / name).write_text(text, "utf-8")
        os.chdir(folder)  # modules of the run's functions are found here
        return run_stages(begin(Path(RUN_FILE), runs), stages, "container", {"train": train})


def main() -> int:
    """Entry of the job; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m launcher.container_driver", description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=Path, required=True, help="the folder of runs, which outlives the container")
    parser.add_argument("--stages", default=",".join(STAGES))
    parser.add_argument("--ranks", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True, help="for which the container runs")
    options = parser.parse_args()
    until = time.time() + options.seconds
    try:
        return run_all(options.runs.absolute(), options.stages.split(","), options.ranks, until)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return FAILED


if __name__ == "__main__":
    sys.exit(main())
