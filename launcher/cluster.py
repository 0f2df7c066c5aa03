"""Settings of where jobs run: the `cluster` section of a run, and the profile of a site, which has the same keys."""

import re
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from data_tools.config import Location, Section
from data_tools.files import is_remote
from launcher.cluster_cloud import CloudConfig, HfJobsConfig, KubernetesConfig
from launcher.words import NodePath, OneLine, Variable, Word

_TIME = re.compile(r"(?:(\d+)-)?(\d{1,3}):([0-5]\d):([0-5]\d)")


def _time(value: Any) -> Any:
    if isinstance(value, int):
        raise ValueError('YAML reads a time without quotes as a number; write it as "24:00:00"')
    if not isinstance(value, str) or not _TIME.fullmatch(value):
        raise ValueError('a time limit is written as "HH:MM:SS" or "D-HH:MM:SS", and is never unlimited')
    return value


def seconds_of(time: str) -> int:
    """Seconds of a time limit.

    >>> seconds_of("1-02:00:30"), seconds_of("24:00:00")
    (93630, 86400)
    """
    match = _TIME.fullmatch(time)
    assert match is not None
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


class ContainerConfig(Section):
    """An image in which everything runs."""

    engine: Literal["pyxis", "apptainer", "docker"]
    """What runs it: Slurm's plugin pyxis (enroot), Apptainer (Singularity), or Docker."""
    image: OneLine = Field(examples=["/images/shardtune.sqsh"])
    """A file, or the name of an image as the engine writes it."""
    mounts: tuple[OneLine, ...] = ()
    """More folders than those that the run's YAML names, and the working directory: `/data` or `/host:/inside`."""


class EnvironmentConfig(Section):
    """What makes `python` the one with shardtune: at most one of these; by default the Python that launches."""

    venv: Location | None = Field(None, examples=["~/venvs/shardtune"])
    """The folder of a virtual environment."""
    conda: OneLine | None = Field(None, examples=["shardtune"])
    """The name or folder of a conda environment."""
    uv: Location | None = Field(None, examples=["~/src/my-project"])
    """The folder of a project that uv keeps."""

    @model_validator(mode="after")
    def _one(self) -> "EnvironmentConfig":
        if sum(value is not None for value in (self.venv, self.conda, self.uv)) > 1:
            raise ValueError("give one of venv, conda and uv")
        return self


class PrepareConfig(Section):
    """The job that tokenizes; it needs no GPU."""

    partition: Word | None = None
    """By default the one of training."""
    how: Literal["single", "array", "ray"] = "single"
    """One process; `tasks` processes of an array job, each its share of the units; or Ray actors on `nodes` nodes."""
    nodes: int = Field(1, ge=1)
    """With `how: ray`."""
    tasks: int = Field(4, ge=1)
    """With `how: array`."""
    cpus: int = Field(8, ge=1)
    """Of each task."""
    memory: Word | None = Field(None, examples=["32G"])
    """Of each node, as Slurm writes it."""
    time: str = "04:00:00"
    """The limit."""

    _check_time = field_validator("time", mode="before")(_time)


class RequeueConfig(Section):
    """How often training starts again by itself."""

    max_failures: int = Field(3, ge=0)
    """After a crash; only where a checkpoint was committed since the start before."""
    max_stops: int = Field(100, ge=0)
    """After a time limit or a preemption."""


class RayConfig(Section):
    """A running Ray cluster, for `--on ray`."""

    address: OneLine = "http://127.0.0.1:8265"
    """Of its dashboard, which takes jobs; a tunnel leads to one elsewhere (`ray dashboard`, `ssh -L`). Its token is
    where Ray looks for it: RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token."""
    runs: OneLine | None = Field(None, examples=["/shared/runs"])
    """The folder of runs there, on a file system that all its nodes share; by default the same as here."""
    storage: OneLine | None = Field(None, examples=["s3://bucket/runs"])
    """A URI, for nodes that share no folder: token store, checkpoints, export and report go there, below the run's
    name. `runs` is then a folder of each node's own, by default below `~/.cache/shardtune`."""
    python: OneLine = "python"
    """Python with shardtune on its nodes."""

    @field_validator("storage")
    @classmethod
    def _storage_is_elsewhere(cls, storage: str | None) -> str | None:
        if storage is not None and not is_remote(storage):
            raise ValueError(f"{storage} is no URI such as s3://bucket/runs; a folder that all nodes share is `runs`")
        return storage


class ClusterConfig(Section):
    """The cluster, and what this run takes of it."""

    profile: str | None = Field(None, examples=["my-site"])
    """Settings of a site: a file's name below `~/.config/shardtune/clusters` or `configs/clusters`, or its path."""
    nodes: int = Field(1, ge=1)
    """Nodes that train."""
    gpus_per_node: int = Field(0, ge=0)
    """0: train on CPUs."""
    ranks_per_node: int | None = Field(None, ge=1)
    """By default one per GPU, without GPUs one."""
    cpus_per_rank: int | None = Field(None, ge=1)
    """By default what the scheduler gives."""
    memory: Word | None = Field(None, examples=["200G"])
    """Of each node that trains, as Slurm writes it; `0` is all of it."""
    time: str = "24:00:00"
    """The limit of training; when it is reached the run is saved and goes on in the next."""
    partition: Word | None = None
    account: Word | None = None
    qos: Word | None = None
    reservation: Word | None = None
    constraint: Word | None = Field(None, examples=["h100"])
    exclude: Word | None = Field(None, examples=["node[07-09]"])
    """Nodes that are not taken."""
    gpu_flag: Literal["gpus-per-node", "gres"] = "gpus-per-node"
    """How this Slurm is asked for GPUs."""
    gpu_type: Word | None = Field(None, examples=["h100"])
    """Where a partition has several."""
    options: tuple[Word, ...] = Field((), examples=[["--licenses=lustre"]])
    """More options of sbatch, each `--name=value`."""
    modules: tuple[Word, ...] = Field((), examples=[["cuda/12.8"]])
    """Loaded in each job."""
    environment: EnvironmentConfig = EnvironmentConfig()
    container: ContainerConfig | None = None
    network: Literal["none", "ib", "efa", "slingshot", "tcpxo"] = "none"
    """What NCCL needs to be told on this network; none: it finds its way, as nearly everywhere."""
    variables: dict[Variable, OneLine] = Field({})
    """Environment variables of the jobs; nothing secret, they are in the scripts."""
    secrets: NodePath = "~/.config/shardtune/secrets.env"
    """A file on all nodes, readable by you alone, with lines NAME=value (WANDB_API_KEY, HF_TOKEN): jobs read it, and it
    is never copied."""
    fetch: Literal["here", "job"] = "here"
    """Where `fetch` runs: nodes that compute seldom have a network."""
    prepare: PrepareConfig = PrepareConfig()
    ray: RayConfig = RayConfig()
    kubernetes: KubernetesConfig = KubernetesConfig()
    cloud: CloudConfig = CloudConfig()
    hf_jobs: HfJobsConfig = HfJobsConfig()
    requeue: RequeueConfig = RequeueConfig()
    lead: int | None = Field(None, ge=1)
    """Seconds before the limit at which a run is asked to save; by default from measured steps and checkpoints."""
    array_limit: int | None = Field(None, ge=1)
    """Tasks of an array that may run at once."""

    _check_time = field_validator("time", mode="before")(_time)

    @field_validator("options")
    @classmethod
    def _free_options(cls, options: tuple[str, ...]) -> tuple[str, ...]:
        for option in options:
            name = option.partition("=")[0]
            if not re.fullmatch(r"--[a-z][a-z-]*", name):
                raise ValueError(f"{option} is not written as --name=value")
            if name in OWN_OPTIONS:
                raise ValueError(f"{name} is set by shardtune itself")
        return options

    @model_validator(mode="after")
    def _lead_is_short(self) -> "ClusterConfig":
        if self.lead is not None and self.lead >= seconds_of(self.time):
            raise ValueError(f"lead ({self.lead} s) must be shorter than time ({self.time})")
        return self

    @property
    def ranks(self) -> int:
        """Processes that train on each node."""
        return self.ranks_per_node or self.gpus_per_node or 1


OWN_OPTIONS = frozenset(
    f"--{name}"
    for name in (
        *("job-name", "nodes", "ntasks", "ntasks-per-node", "gpus-per-node", "gres", "cpus-per-task", "mem", "time"),
        *("signal", "requeue", "no-requeue", "open-mode", "output", "error", "export", "dependency", "array", "chdir"),
        *("kill-on-invalid-dep", "partition", "account", "qos", "reservation", "constraint", "exclude", "comment"),
        *("wrap", "parsable", "test-only", "hold", "wait-all-nodes", "wait", "uid", "gid", "propagate", "export-file"),
    )
)
"""Options of sbatch that have a setting of their own, or that the jobs depend on."""
