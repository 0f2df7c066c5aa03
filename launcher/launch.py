"""`shardtune launch`: run's YAML → jobs → scheduler, once.

    check everything ─► write run.yaml, scripts ─► ask the scheduler about each ─► submit all, held ─► release the first

Nothing runs before all of it is submitted, and the record in `jobs/jobs.json` says what was submitted, so that the same
command given twice is one chain of jobs.
"""

import fcntl
import hashlib
import json
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from data_tools.errors import UserError
from data_tools.files import is_remote
from data_tools.store import MANIFEST, write_json, write_text
from launcher.attempts import Budget, lead_seconds, note_launch, write_budget
from launcher.backends import hf_jobs, kubernetes, local_jobs, ray_jobs, slurm
from launcher.cluster import seconds_of
from launcher.config import RunConfig, save_run
from launcher.environment import variables_passed_on
from launcher.jobs import STAGES, Chain, Job, JobState, Submitted, jobs_of
from launcher.launched import JOBS, all_ended_well, is_trained, read_jobs
from launcher.pins import follow_sweep, require_model
from launcher.places import folders_named
from launcher.run_folder import SWEEP, check_same_run, sweep_of
from launcher.stages import fetch_stage
from launcher.versions import versions

BACKENDS = {
    "slurm": slurm,
    "ray": ray_jobs,
    "kubernetes": kubernetes,
    "hf-jobs": hf_jobs,
    "local": local_jobs,
}
_ELSEWHERE = ("kubernetes", "hf-jobs")
"""There no folder of this machine is seen, as on a Ray with runs of its own: what is fetched here is of no use."""


def launch(
    config: RunConfig, points: list[RunConfig], on: str, stages: tuple[str, ...], dry_run: bool, console: Console
) -> dict[str, Any]:
    """Render, check and submit the jobs of a run.

    Args:
        config: the run; of a sweep, what its runs have in common.
        points: the runs that train: the run itself, or those of a sweep.
        on: the back end.
        stages: those of `STAGES` that are wanted.
        dry_run: write and show everything, submit nothing.

    Raises:
        UserError: something is wrong with the configuration, or the scheduler refuses it; nothing is submitted then.
    """
    folder = config.folder.absolute()
    elsewhere = on in _ELSEWHERE or (on == "ray" and bool(config.cluster.ray.runs or config.cluster.ray.storage))
    config = _as_it_runs_there(config, on, elsewhere)
    contained = config.cluster.container is not None
    variables = () if on == "local" else variables_passed_on(not elsewhere, contained)  # a script here inherits all
    chain = _chain(config, points, stages, places=not elsewhere, variables=variables)
    backend = BACKENDS[on]
    rendered = backend.render(chain)
    with _locked(folder):
        for other in (sweep_of(folder), *chain.runs):
            if other is not None and other != folder:
                _refuse_beside(folder, other)
        over = _over(folder, chain.identity)
        if over and not dry_run:
            console.print(f"[yellow]already finished[/]: {_listed(over)}; shardtune status {folder}; {_AGAIN}")
            return _facts(folder, over)
        going_on = _going_on(folder, chain.identity)  # of a dry run as well, which writes what waiting jobs will read
        if going_on and not dry_run:
            console.print(f"[yellow]already launched[/]: {_listed(going_on)}; shardtune status {folder}")
            return _facts(folder, going_on)
        for run in {config.folder: config, **{point.folder: point for point in points}}.values():
            _write_run(run)
            if run.folder.absolute() != folder:
                write_json(run.folder / SWEEP, {"sweep": str(folder), "settings": _own_settings(config, run)})
        planned = [_write(chain, job, on, *rendered[job.stage]) for job in chain.jobs]
        if dry_run:
            _show(planned, console)
            return _facts(folder, planned)
        if "fetch" in stages and config.cluster.fetch == "here":
            fetch_stage(config, console)
        for run in points:
            if run.folder.absolute() != folder:
                follow_sweep(run, folder)
        for line in backend.check(chain, planned):
            console.print(f"  {line}", markup=False, highlight=False)
        _forget_ends(dict.fromkeys((folder, *chain.runs)))
        submitted = backend.submit(chain, planned, lambda jobs: _record(chain, jobs))
        console.print(f"[green]launched[/] {_listed(submitted)} → shardtune status {folder}")
        return _facts(folder, submitted)


def _as_it_runs_there(config: RunConfig, on: str, elsewhere: bool) -> RunConfig:
    """With what the back end cannot do otherwise."""
    cluster = config.cluster
    if elsewhere:
        cluster = cluster.model_copy(update={"fetch": "job"})
    if on != "slurm":  # elsewhere one process, or Ray, prepares
        cluster = cluster.model_copy(update={"prepare": cluster.prepare.model_copy(update={"how": "single"})})
    return config.model_copy(update={"cluster": cluster})


def _forget_ends(runs: Iterable[Path]) -> None:
    """Of an earlier launch."""
    for run in runs:
        note_launch(run)
        for end in (run / "jobs" / "ends").glob("*.json"):
            end.unlink()


def _chain(
    config: RunConfig,
    points: list[RunConfig],
    stages: tuple[str, ...],
    places: bool,
    variables: tuple[tuple[str, str], ...],
) -> Chain:
    if unknown := [stage for stage in stages if stage not in STAGES]:
        raise UserError(f"--stages: {unknown[0]} is none of {', '.join(STAGES)}")
    for point in points:
        if "train" in stages:
            require_model(point)
        check_same_run(point)
    here = places and not is_remote(str(config.data.store))
    if here and "train" in stages and "prepare" not in stages and not (config.store / MANIFEST).exists():
        raise UserError(f"the token store {config.store} does not exist; add prepare to --stages")
    lead = config.cluster.lead or _measured_lead(config)
    runs = tuple(point.folder.absolute() for point in points)
    return Chain(
        name=config.name,
        folder=config.folder.absolute(),
        runs=runs,
        jobs=jobs_of(config.cluster, stages, len(runs), lead),
        cluster=config.cluster,
        working_folder=Path.cwd(),
        python=sys.executable,
        folders=folders_named(config) if places else (),
        variables=variables,
        identity=_identity(config, points, stages),
    )


def _own_settings(config: RunConfig, run: RunConfig) -> dict[str, Any]:
    """What a run of a sweep has otherwise than the sweep: `section.key` → value."""
    found: dict[str, Any] = {}

    def compare(common: Any, own: Any, path: str) -> None:
        if isinstance(common, dict) and isinstance(own, dict):
            for key in own:
                compare(common.get(key), own[key], f"{path}.{key}" if path else key)
        elif common != own and path not in ("name", "data.store"):
            found[path] = own

    compare(config.model_dump(mode="json"), run.model_dump(mode="json"), "")
    return found


def _measured_lead(config: RunConfig) -> int:
    """What a run before took to save, but never most of a short limit."""
    return max(1, min(round(lead_seconds(config.folder)), seconds_of(config.cluster.time) // 2))


def _identity(config: RunConfig, points: list[RunConfig], stages: tuple[str, ...]) -> str:
    """Of what is launched: launched twice, it is the same."""
    values = [point.model_dump(mode="json") for point in (config, *points)]
    what = [str(config.folder.absolute()), stages, values]
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One launch of a run at a time."""
    try:
        for each in (folder, folder / "jobs", folder / "logs"):
            each.mkdir(parents=True, exist_ok=True)
        (folder / "logs").chmod(0o700)  # output may quote data
    except OSError as error:
        raise UserError(f"cannot make the folder {error.filename}: {error.strerror}; set runs=FOLDER") from None
    with open(folder / "jobs" / ".lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{folder} is being launched by another process; see shardtune status {folder}") from None
        yield


def _going_on(folder: Path, identity: str) -> list[Submitted] | None:
    """The jobs of an earlier launch that are not over; None: there are none.

    Raises:
        UserError: they are of another configuration.
    """
    record = read_jobs(folder)
    if record is None:
        return None
    jobs = [Submitted(**job) for job in record["jobs"]]
    known = BACKENDS[record["on"]].states([job.id for job in jobs if job.id])
    active = [job for job, state in known.items() if state.active]
    other = record["identity"] != identity
    if not active or (other and all_ended_well(folder, jobs)):  # a script that has done all may take a moment to end
        return None
    if other:
        raise UserError(
            f"{folder} has jobs that are not over ({', '.join(active)}), of another configuration; "
            f"shardtune cancel {folder} first, or launch another run with name=NAME"
        )
    if any(job.id is None for job in jobs) or _is_held(known.get(str(jobs[0].id))):
        return None  # that launch was cut off; what it had submitted is found again
    if all(known[job].word == "COMPLETING" for job in active):
        raise UserError(f"the jobs of {folder} are still ending ({', '.join(active)}); launch again in a moment")
    return jobs


_AGAIN = "--stages STAGE does one again, name=NAME another run"


def _over(folder: Path, identity: str) -> list[Submitted] | None:
    """The jobs of an earlier launch of the same that trained to the end; None: there are none."""
    record = read_jobs(folder)
    if record is None or record["identity"] != identity:
        return None
    jobs = [Submitted(**job) for job in record["jobs"]]
    return jobs if is_trained(folder, jobs) else None


def _is_held(first: JobState | None) -> bool:
    """Whether the chain never began: `submit` releases its first job when all are there."""
    return first is not None and first.reason == "JobHeldUser"


def _refuse_beside(folder: Path, other: Path) -> None:
    """A run of a sweep is trained by that, or by itself.

    Raises:
        UserError: jobs of the other are not over.
    """
    record = read_jobs(other)
    ids = [job["id"] for job in record["jobs"] if job["id"]] if record else []
    if record and (active := [job for job, state in BACKENDS[record["on"]].states(ids).items() if state.active]):
        raise UserError(
            f"{folder} and {other} have a run in common, and the jobs of {other} are not over ({', '.join(active)}); "
            f"shardtune cancel {other} first"
        )


def _write_run(config: RunConfig) -> None:
    save_run(config)
    (config.folder / "jobs").mkdir(exist_ok=True)
    requeue = config.cluster.requeue
    write_budget(config.folder, Budget(requeue.max_failures, requeue.max_stops), config.cluster.lead)
    write_json(config.folder / "jobs" / "versions.json", versions())


def _write(chain: Chain, job: Job, on: str, name: str, text: str) -> Submitted:
    path = chain.folder / "jobs" / name
    write_text(path, text)
    path.chmod(0o700)
    return Submitted(job.stage, on, str(path), f"logs/{job.stage}-[0-9l]*.out", job.array)


def _record(chain: Chain, jobs: list[Submitted]) -> None:
    write_json(
        chain.folder / JOBS,
        {
            "on": jobs[0].backend,
            "identity": chain.identity,
            "submitted": datetime.now().astimezone().isoformat(timespec="seconds"),
            "runs": [str(run) for run in chain.runs],
            "jobs": [asdict(job) for job in jobs],
        },
    )


def _show(jobs: list[Submitted], console: Console) -> None:
    for file in dict.fromkeys(job.file for job in jobs):
        console.print(f"── {file}", style="bold", markup=False, highlight=False)
        console.print(Path(file).read_text("utf-8"), markup=False, highlight=False)
    console.print(f"nothing was submitted: {_listed(jobs)}", markup=False, highlight=False)


def _listed(jobs: list[Submitted]) -> str:
    return ", ".join(f"{job.stage} ({job.id})" if job.id else job.stage for job in jobs)


def _facts(folder: Path, jobs: list[Submitted]) -> dict[str, Any]:
    keys = ("stage", "backend", "id", "file")
    return {"run": str(folder), "jobs": [{key: getattr(job, key) for key in keys} for job in jobs]}
