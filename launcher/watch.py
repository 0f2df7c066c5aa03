"""What became of the jobs of a run: their states, how far they are, their output; and their end, where it is wanted."""

import json
import re
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from data_tools.errors import UserError
from launcher.jobs import JobState, Submitted
from launcher.launch import BACKENDS
from launcher.launched import JOBS, all_ended_well, end_codes, read_jobs, runs_of
from launcher.progress import PREPARING
from launcher.run_folder import SWEEP, read_status, sweep_of
from sft.exits import STOPPED
from sft.record import read_metrics

_ONE_JOB = ("local", "ray", "kubernetes", "hf-jobs")
"""There one job does all stages, and says of each how it ended."""
_ONE_OUTPUT = ("ray", "kubernetes", "hf-jobs")
"""There it is not in files here, and one for all stages."""


_ERROR = re.compile(r"(?:\d+: )?(?:\[[^]]*\] )?error: (.*)")
"""A line of a rank, which srun may have numbered, or of a script, with the time."""


@dataclass(frozen=True)
class Look:
    """One line of `shardtune status`."""

    stage: str
    backend: str
    id: str | None
    state: str
    progress: str
    left: str
    """Until it is done, at the speed of its last steps."""
    note: str


def status_stage(run: str, console: Console) -> dict[str, Any]:
    """One table of all stages."""
    folder = find_launched(run)
    looks = _look(folder)
    table = Table(title=str(folder), title_justify="left", title_style="bold")
    for column in ("stage", "where", "job", "state", "progress", "left", ""):
        table.add_column(column)
    for look in looks:
        number = (look.id or "-").partition("@")[0]  # behind it, where or when that is
        stage = look.stage if look.state else f"  {look.stage}"
        table.add_row(stage, look.backend, number, look.state, look.progress, look.left, look.note)
    console.print(table)
    return {"run": str(folder), "jobs": [vars(look) for look in looks]}


def cancel_stage(run: str, console: Console) -> dict[str, Any]:
    """End all jobs of a run that are not over, those that wait for others first."""
    folder = find_launched(run)
    jobs, states = _jobs(folder)
    active = [job.id for job in reversed(jobs) if job.id and job.id in states and states[job.id].active]
    ids = list(dict.fromkeys(active))
    BACKENDS[jobs[0].backend].cancel(ids)
    console.print(f"cancelled {', '.join(ids)}" if ids else f"{folder} has no jobs that are not over", highlight=False)
    return {"run": str(folder), "cancelled": ids}


def logs_stage(run: str, stage: str | None, follow: bool, console: Console) -> dict[str, Any]:
    """Print the output of a stage, by default of all; with `follow`, until the jobs are over."""
    folder = find_launched(run)
    jobs, states = _jobs(folder)
    if stage is not None and jobs[0].backend in _ONE_OUTPUT:
        raise UserError(f"--stage: on {jobs[0].backend} all stages are one job, with one output; leave it out")
    if stage is not None and stage not in {job.stage for job in jobs}:
        raise UserError(f"--stage {stage}: {folder} has {', '.join(job.stage for job in jobs)}")
    lines = 0
    for text in _output(folder, stage, follow):
        lines += text.count("\n")
        sys.stderr.write(text) if console.stderr else sys.stdout.write(text)
        sys.stdout.flush()
    if not lines and not follow:
        waiting = ", ".join(f"{job.stage} is {_state(folder, job, states)[0]}" for job in jobs)
        raise UserError(f"{folder / 'logs'} has no output yet: {waiting}")
    return {"run": str(folder), "lines": lines}


def find_launched(run: str) -> Path:
    """The folder of a run that was launched, given by its path or by its name below `runs`.

    Raises:
        UserError: there is none.
    """
    for folder in (Path(run), Path("runs") / run):
        if (folder / JOBS).exists():
            return folder.absolute()
        if (sweep := sweep_of(folder)) is not None:
            raise UserError(f"{folder} is a run of the sweep {sweep}, whose jobs are its own; give that")
    raise UserError(f"{run} is no run that was launched (it has no {JOBS}); see shardtune launch")


def _jobs(folder: Path) -> tuple[list[Submitted], dict[str, JobState]]:
    record = read_jobs(folder)
    assert record is not None
    jobs = [Submitted(**job) for job in record["jobs"]]
    if all_ended_well(folder, jobs):
        return jobs, {}  # a machine without the scheduler's commands tells it as well
    return jobs, BACKENDS[record["on"]].states([job.id for job in jobs if job.id])


def _look(folder: Path) -> list[Look]:
    jobs, states = _jobs(folder)
    looks: list[Look] = []
    for job in jobs:
        state, note = _state(folder, job, states)
        if state == "RUNNING" and looks and looks[-1].id == job.id and looks[-1].state in ("RUNNING", "WAITING"):
            state, note = "WAITING", f"for {looks[-1].stage}"  # one job does them one after the other
        progress, left = _progress(folder, job.stage)
        if state.startswith(("FAILED", "UNKNOWN")):
            note = _last_error(folder, job) or note
        looks.append(Look(job.stage, job.backend, job.id, state, progress, left if state == "RUNNING" else "", note))
        if job.stage == "train":
            looks += _look_at_sweep(folder, job)
    return looks


def _look_at_sweep(folder: Path, job: Submitted) -> list[Look]:
    """A line for each run of a sweep, with what it has of its own."""
    looks = []
    for run in runs_of(folder)[1:]:
        settings = _read(run / SWEEP).get("settings", {})
        status = read_status(run)
        progress, left = _trained(run, status) if status else ("", "")
        note = ", ".join(f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in settings.items())
        over = status.get("phase") in ("finished", "stopped")
        looks.append(Look(run.name, job.backend, None, "", progress, "" if over else left, note))
    return looks


def _last_error(folder: Path, job: Submitted) -> str:
    """The last mistake that the output of a job names: of its ranks, or of its script."""
    number = (job.id or "").partition("@")[0]
    paths = [path for path in folder.glob(job.log) if re.search(rf"-{number}[._]", path.name)]
    texts = [path.read_text("utf-8", errors="replace") for path in sorted(paths, key=lambda path: path.stat().st_mtime)]
    said = (_ERROR.match(line) for text in texts for line in text.splitlines())
    return ([match[1] for match in said if match] or [""])[-1]


def _state(folder: Path, job: Submitted, states: dict[str, JobState]) -> tuple[str, str]:
    """What the scheduler says; where it has forgotten the job, what the job itself wrote at its end."""
    codes = end_codes(folder, job.stage)
    if job.backend in _ONE_JOB and len(codes) >= job.tasks:
        return _in_words(codes), ""
    if job.id in states:
        return states[job.id].word, states[job.id].reason
    if job.backend == "local" and not codes:
        return "NOT RUN", "the job ended before"
    if job.backend == "local" and len(codes) < job.tasks:
        return _in_words(codes) if any(codes) else "NOT RUN", f"{job.tasks - len(codes)} of {job.tasks} were not run"
    if len(codes) < job.tasks:
        without = f"{job.tasks - len(codes)} of its {job.tasks} tasks" if job.tasks > 1 else "it"
        return "UNKNOWN", f"the scheduler has forgotten it, and {without} left no word"
    return _in_words(codes), ""


def _in_words(codes: list[int]) -> str:
    if not any(codes):
        return "COMPLETED"
    worst = max(codes, key=lambda code: (code not in (0, STOPPED), code))
    return "STOPPED" if worst == STOPPED else f"FAILED ({worst})"


def _progress(folder: Path, stage: str) -> tuple[str, str]:
    if stage.startswith("prepare"):
        return _prepared(folder, stage)
    if stage != "train":
        return "", ""
    told = {run: status for run in runs_of(folder) if (status := read_status(run))}
    if len(runs_of(folder)) > 1:
        return _swept(told)
    return _trained(folder, told[folder]) if told else ("", "")


def _swept(told: dict[Path, dict[str, Any]]) -> tuple[str, str]:
    """Of a sweep, its runs that have begun."""
    if not told:
        return "", ""
    finished = sum(status["phase"] == "finished" for status in told.values())
    step = sum(max((line["step"] for line in read_metrics(run)), default=0) for run in told)
    return (
        f"{finished} of {len(told)} begun runs finished, step {step:,} / {sum(s['steps'] for s in told.values()):,}",
        "",
    )


def _trained(folder: Path, status: dict[str, Any]) -> tuple[str, str]:
    lines = [line for line in read_metrics(folder) if "loss" in line]
    step, steps = (lines[-1]["step"] if lines else status["step"]), status["steps"]
    text = f"{status['phase']}, step {step:,} / {steps:,}"
    if not lines:
        return text, ""
    return f"{text}, loss {lines[-1]['loss']:.3f}", _duration((steps - step) * lines[-1]["step_time"])


def _prepared(folder: Path, stage: str) -> tuple[str, str]:
    """Rows that are tokenized, by all shares together."""
    paths = [folder / PREPARING] if stage == "prepare" else sorted(folder.glob("prepare-*.json"))
    told = [found for path in paths if (found := _read(path))]
    if not told:
        return "", ""
    rows, total = sum(each["rows"] for each in told), sum(each["total"] for each in told)
    left = [each["seconds_left"] for each in told]
    return f"{rows:,} / {total:,} rows", "" if None in left else _duration(max(left))


def _duration(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


def _output(folder: Path, stage: str | None, follow: bool) -> Iterator[str]:
    """What is in the logs, in the order of the stages, then what is added to them."""
    read: dict[Path, int] = {}
    while True:
        jobs, states = _jobs(folder)
        over = not any(state.active for state in states.values())
        if jobs[0].backend in _ONE_OUTPUT:
            text = BACKENDS[jobs[0].backend].output(str(jobs[0].id))
            yield text[read.get(folder, 0) :]
            read[folder] = len(text)
            jobs = []
        for job in jobs:
            for path in sorted(folder.glob(job.log)) if stage in (None, job.stage) else []:
                with open(path, encoding="utf-8", errors="replace") as file:
                    file.seek(read.get(path, 0))
                    if text := file.read():
                        yield text if path in read else f"── {path}\n{text}"
                    read[path] = file.tell()
        if over or not follow:
            return
        time.sleep(1)


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text("utf-8")) if path.exists() else {}
