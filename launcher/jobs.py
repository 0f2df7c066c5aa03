"""The jobs of a run, as values: which there are, what each needs, and which waits for which. Nothing is read here.

fetch ─► prepare ─► train ─► export          prepare in shares: prepare-shares (an array) ─► prepare (the rest)
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from launcher.cluster import ClusterConfig, PrepareConfig

STAGES = ("fetch", "prepare", "train", "export")
"""All that can be launched, in order."""

Body = str
"""The name of a script in `slurm/`, without `.sh`."""


@dataclass(frozen=True)
class Job:
    """One job of a chain."""

    stage: str
    """What it is called in the run: one of `STAGES`, or `prepare-shares`."""
    body: Body
    """What it does: one of the scripts in `slurm/`."""
    nodes: int
    tasks_per_node: int
    cpus_per_task: int | None
    gpus_per_node: int
    memory: str | None
    """Of each node, as Slurm writes it."""
    time: str
    """The limit."""
    partition: str | None
    after: str | None = None
    """The stage that has to be finished before."""
    array: int = 1
    """Tasks that do the same, each for its own share or run."""
    lead: int | None = None
    """Seconds before the limit at which the job is asked to save and stop; None: it has nothing to save."""


@dataclass(frozen=True)
class Chain:
    """All jobs of a run, or of the runs of a sweep, which share a store."""

    name: str
    """Of the run, or of the sweep."""
    folder: Path
    """The run's folder, absolute; of a sweep, where its store, scripts and logs are."""
    runs: tuple[Path, ...]
    """The folder of each run that trains, absolute; but in a sweep the run's folder itself."""
    jobs: tuple[Job, ...]
    cluster: ClusterConfig
    working_folder: Path
    """Where relative paths and `module:function` are looked up, absolute."""
    python: str
    """The Python that launches."""
    folders: tuple[Path, ...]
    """More folders of this machine that the jobs read or write, absolute: a container has to be shown them."""
    variables: tuple[tuple[str, str], ...]
    """Environment variables of the jobs; none is secret."""
    identity: str
    """The same for the same configuration: by it jobs are known again."""


@dataclass(frozen=True)
class Submitted:
    """A job as the run's folder remembers it."""

    stage: str
    backend: str
    file: str
    """What was submitted: a script or a manifest, absolute."""
    log: str
    """Its output: a glob in the run's folder."""
    tasks: int
    id: str | None = None
    """None: it is not submitted yet."""


Record = Callable[[list[Submitted]], None]
"""Called with all jobs whenever one more has an id."""


@dataclass(frozen=True)
class JobState:
    """What a scheduler says of a job."""

    word: str
    """Its own word: PENDING, RUNNING, COMPLETED, …"""
    reason: str
    """Why it waits, or where it runs."""
    active: bool
    """Whether it is not over."""


def jobs_of(cluster: ClusterConfig, stages: tuple[str, ...], runs: int, lead: int) -> tuple[Job, ...]:
    """The jobs of `runs` runs that differ in how they train.

    Args:
        stages: those of `STAGES` that are wanted.
        lead: seconds before the limit at which training is asked to save.
    """
    jobs: list[Job] = []
    for stage in STAGES:
        if stage in stages and not (stage == "fetch" and cluster.fetch == "here"):
            jobs += _jobs_of_stage(stage, cluster, runs, lead, after=jobs[-1].stage if jobs else None)
    return tuple(jobs)


def _jobs_of_stage(stage: str, cluster: ClusterConfig, runs: int, lead: int, after: str | None) -> list[Job]:
    if stage == "train":
        return [_train(cluster, runs, lead, after)]
    if stage == "prepare" and cluster.prepare.how == "array":
        shares = _on_cpus("prepare-shares", "prepare_share", cluster, cluster.prepare.tasks, after)
        return [shares, _on_cpus("prepare", "prepare", cluster, 1, "prepare-shares")]
    if stage == "prepare" and cluster.prepare.how == "ray":
        return [_on_cpus("prepare", "prepare_ray", cluster, 1, after, cluster.prepare.nodes)]
    return [_on_cpus(stage, stage, cluster, runs if stage == "export" else 1, after)]


def _train(cluster: ClusterConfig, runs: int, lead: int, after: str | None) -> Job:
    return Job(
        stage="train",
        body="train",
        nodes=cluster.nodes,
        tasks_per_node=cluster.ranks,
        cpus_per_task=cluster.cpus_per_rank,
        gpus_per_node=cluster.gpus_per_node,
        memory=cluster.memory,
        time=cluster.time,
        partition=cluster.partition,
        after=after,
        array=runs,
        lead=lead,
    )


def _on_cpus(stage: str, body: Body, cluster: ClusterConfig, array: int, after: str | None, nodes: int = 1) -> Job:
    settings: PrepareConfig = cluster.prepare
    return Job(
        stage=stage,
        body=body,
        nodes=nodes,
        tasks_per_node=1,
        cpus_per_task=settings.cpus,
        gpus_per_node=0,
        memory=settings.memory,
        time=settings.time,
        partition=settings.partition or cluster.partition,
        after=after,
        array=array,
    )
