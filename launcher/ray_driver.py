"""Runs on a Ray cluster as one job: the stages of a run, one after the other.

    python -m launcher.ray_driver run.yaml --runs FOLDER --stages prepare,train,export

Prepare spreads its actors over all nodes, training is placed and started again by Ray Train (`launcher.ray_train`).
"""

import argparse
import sys
from pathlib import Path

from data_tools.errors import UserError
from launcher.config import RunConfig, save_run
from launcher.driver import begin, run_stages, shardtune
from launcher.jobs import STAGES
from launcher.ray_storage import in_storage, put_beginning, put_results, runs_of_this_machine
from sft.exits import FAILED


def _fetch(config: RunConfig) -> int:
    from launcher.ray_fetch import fetch_on_all_nodes

    code = shardtune("fetch", config.folder)
    if not code:
        fetch_on_all_nodes(config.folder, config.cluster.ray.runs)
    return code


def _train(config: RunConfig) -> int:
    from launcher.ray_train import train_on_ray

    cluster = config.cluster
    ranks = cluster.nodes * cluster.ranks
    if code := shardtune("plan", config.folder, "--ranks", ranks):
        return code
    if cluster.ray.storage:
        put_beginning(config.folder, cluster.ray.storage)
    return train_on_ray(config.folder, cluster, ranks)


def main() -> int:
    """Entry of the job; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m launcher.ray_driver", description=__doc__.splitlines()[0])
    parser.add_argument("config", type=Path, help="the run's YAML")
    parser.add_argument("--runs", help="the folder of runs, which all nodes share but with cluster.ray.storage")
    parser.add_argument("--stages", default=",".join(STAGES))
    options = parser.parse_args()
    try:
        config = begin(options.config, runs_of_this_machine(options.runs))
        storage = config.cluster.ray.storage
        if storage is None:
            return run_stages(config, options.stages.split(","), "ray", {"train": _train})
        config = in_storage(config, storage)
        save_run(config)
        code = run_stages(config, options.stages.split(","), "ray", {"fetch": _fetch, "train": _train})
        put_results(config.folder, storage)
        return code
    except UserError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return FAILED


if __name__ == "__main__":
    sys.exit(main())
