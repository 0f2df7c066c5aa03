"""Runs on a Ray cluster as one job: the stages of a run, one after the other.

    python -m launcher.ray_driver run.yaml --runs FOLDER --stages prepare,train,export

Prepare spreads its actors over all nodes, training is placed and started again by Ray Train (`launcher.ray_train`).
"""

import argparse
import sys
from pathlib import Path

from data_tools.errors import UserError
from launcher.config import RunConfig
from launcher.driver import begin, run_stages, shardtune
from launcher.jobs import STAGES
from sft.exits import FAILED


def _train(config: RunConfig) -> int:
    from launcher.ray_train import train_on_ray

    cluster = config.cluster
    ranks = cluster.nodes * cluster.ranks
    return shardtune("plan", config.folder, "--ranks", ranks) or train_on_ray(config.folder, cluster, ranks)


def main() -> int:
    """Entry of the job; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m launcher.ray_driver", description=__doc__.splitlines()[0])
    parser.add_argument("config", type=Path, help="the run's YAML")
    parser.add_argument("--runs", type=Path, required=True, help="the folder of runs, which all nodes share")
    parser.add_argument("--stages", default=",".join(STAGES))
    options = parser.parse_args()
    try:
        return run_stages(begin(options.config, options.runs), options.stages.split(","), "ray", _train)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return FAILED


if __name__ == "__main__":
    sys.exit(main())
