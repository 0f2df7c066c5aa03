"""What a job does that has all stages of a run: it begins with the files that came with it, and does one by one."""

import signal
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from data_tools.lock import LOCK_FILE
from data_tools.store import write_json, write_text
from launcher.config import RunConfig, load_run, save_run
from launcher.environment import read_secrets


def begin(config_file: Path, runs: Path) -> RunConfig:
    """Make the run's folder here.

    Args:
        config_file: the run's YAML; its lock lies beside it.
        runs: the folder of runs here.

    Raises:
        UserError: the YAML or the file of secrets is wrong.
    """
    config = load_run(str(config_file), []).model_copy(update={"runs": str(runs.absolute())})
    read_secrets(Path(config.cluster.secrets).expanduser())
    save_run(config)
    lock = config_file.parent / LOCK_FILE
    if lock.exists():
        write_text(config.folder / LOCK_FILE, lock.read_text("utf-8"))
    return config


def run_stages(config: RunConfig, stages: list[str], job: str, own: dict[str, Callable[[RunConfig], int]]) -> int:
    """Run stages until one fails; returns the exit code of the last, and notes each in `jobs/ends`.

    Args:
        job: what the notes call it.
        own: what does a stage in place of the command of that name; returns its exit code.
    """
    for stage in stages:
        print(f"── {stage}", flush=True)
        code = own[stage](config) if stage in own else shardtune(stage, config.folder)
        if stage == "export" and not code:
            code = shardtune("report", config.folder)
        ended = datetime.now().astimezone().isoformat(timespec="seconds")
        folder = config.folder / "jobs" / "ends"
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / f"{stage}.json", {"job": job, "code": code, "ended": ended})
        if code:
            return code
    return 0


def shardtune(*arguments: object) -> int:
    """Run a command of shardtune, and pass on to it that this process is asked to end; returns its exit code."""
    process = subprocess.Popen([sys.executable, "-m", "launcher", *map(str, arguments)])
    before = signal.signal(signal.SIGTERM, lambda *_: process.terminate())
    try:
        return process.wait()
    finally:
        signal.signal(signal.SIGTERM, before)
