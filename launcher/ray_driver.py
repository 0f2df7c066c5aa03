"""Runs on a Ray cluster as one job: the stages of a run, one after the other.

    python -m launcher.ray_driver run.yaml --runs FOLDER --stages prepare,train,export

Prepare spreads its actors over all nodes, training is placed and started again by Ray Train (`launcher.ray_train`).
"""

import argparse
import subprocess
import sys
from datetime import datetime
from pathlib import Path

from data_tools.errors import UserError
from data_tools.lock import LOCK_FILE
from data_tools.store import write_json, write_text
from launcher.config import RunConfig, load_run, save_run
from launcher.environment import read_secrets
from launcher.jobs import STAGES
from sft.exits import FAILED


def run_stages(config: RunConfig, stages: list[str]) -> int:
    """Run stages until one fails; returns the exit code of the last, and notes each in `jobs/ends`."""
    for stage in stages:
        print(f"── {stage}", flush=True)
        code = _train(config) if stage == "train" else _command(stage, config.folder)
        if stage == "export" and not code:
            code = _command("report", config.folder)
        ended = datetime.now().astimezone().isoformat(timespec="seconds")
        folder = config.folder / "jobs" / "ends"
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / f"{stage}.json", {"job": "ray", "code": code, "ended": ended})
        if code:
            return code
    return 0


def _command(stage: str, folder: Path) -> int:
    return subprocess.run([sys.executable, "-m", "launcher", stage, str(folder)], check=False).returncode


def _train(config: RunConfig) -> int:
    from launcher.ray_train import train_on_ray

    cluster = config.cluster
    ranks = cluster.nodes * cluster.ranks
    plan = [sys.executable, "-m", "launcher", "plan", str(config.folder), "--ranks", str(ranks)]
    return subprocess.run(plan, check=False).returncode or train_on_ray(config.folder, cluster, ranks)


def main() -> int:
    """Entry of the job; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m launcher.ray_driver", description=__doc__.splitlines()[0])
    parser.add_argument("config", help="the run's YAML")
    parser.add_argument("--runs", type=Path, required=True, help="the folder of runs, which all nodes share")
    parser.add_argument("--stages", default=",".join(STAGES))
    options = parser.parse_args()
    try:
        config = load_run(options.config, []).model_copy(update={"runs": str(options.runs.absolute())})
        read_secrets(Path(config.cluster.secrets).expanduser())
        save_run(config)
        lock = Path(options.config).parent / LOCK_FILE
        if lock.exists():
            write_text(config.folder / LOCK_FILE, lock.read_text("utf-8"))
        return run_stages(config, options.stages.split(","))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return FAILED


if __name__ == "__main__":
    sys.exit(main())
