"""What a run's folder says about the jobs that were launched for it, whatever their back end."""

import json
from pathlib import Path
from typing import Any

from launcher.jobs import Submitted
from launcher.run_folder import read_status

JOBS = Path("jobs") / "jobs.json"


def read_jobs(folder: Path) -> dict[str, Any] | None:
    """What was launched last; None: nothing."""
    path = folder / JOBS
    found: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.exists() else {}
    return found or None


def runs_of(folder: Path) -> list[Path]:
    """The folders in which jobs say how they are: the run's own, and those of the runs of a sweep."""
    record = read_jobs(folder) or {}
    return [Path(run) for run in dict.fromkeys((str(folder), *record.get("runs", ())))]


def end_codes(folder: Path, stage: str) -> list[int]:
    """The exit codes that the tasks of a stage left, each at its own end; those that left none are missing."""
    codes = []
    for run in runs_of(folder):
        there = run / "jobs" / "ends"
        # One, or one of each task; those of `prepare` lie beside those of `prepare-shares`.
        for path in (*there.glob(f"{stage}.json"), *sorted(there.glob(f"{stage}-[0-9]*.json"))):
            codes.append(int(json.loads(path.read_text("utf-8"))["code"]))
    return codes


def all_ended_well(folder: Path, jobs: list[Submitted]) -> bool:
    """Whether every task of every job left word that it succeeded: no scheduler has to be asked then."""
    return all(end_codes(folder, job.stage) == [0] * job.tasks for job in jobs)


def is_trained(folder: Path, jobs: list[Submitted]) -> bool:
    """Whether these jobs have trained the run, or the runs of a sweep, to the end, and left nothing to be done."""
    training = next((job for job in jobs if job.stage == "train"), None)
    if training is None or not all_ended_well(folder, jobs):
        return False
    told = [status for run in runs_of(folder) if (status := read_status(run))]
    whole = [status["phase"] == "finished" and not status["warning"] for status in told]  # a copy may have failed
    return whole == [True] * training.tasks
