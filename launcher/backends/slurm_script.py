"""The script of a job for sbatch: its options, its settings, and its body from `slurm/`."""

import re
from pathlib import Path
from shlex import join, quote

from data_tools.errors import UserError
from launcher.cluster import ClusterConfig, ContainerConfig
from launcher.jobs import Chain, Job
from launcher.network import network_variables

BODIES = Path(__file__).parent.parent.parent / "slurm"

_PLAIN_PATH = re.compile(r"/[^\s\"'\\%#]*")


def render(chain: Chain) -> dict[str, tuple[str, str]]:
    """A script for each job: stage → file name and text.

    Raises:
        UserError: a path has characters that an option of sbatch cannot have.
    """
    return {job.stage: (f"{job.stage}.sbatch", render_job(chain, job)) for job in chain.jobs}


def render_job(chain: Chain, job: Job) -> str:
    """The whole script of a job: options, settings, and its body from `slurm/`.

    Raises:
        UserError: a path has characters that an option of sbatch cannot have.
    """
    lines = ["#!/bin/bash", *(f"#SBATCH {option}" for option in _options(chain, job)), "", *_settings(chain, job)]
    bodies = [(BODIES / f"{name}.sh").read_text("utf-8") for name in ("common", job.body)]
    return "\n".join([*lines, "", *bodies])


def _options(chain: Chain, job: Job) -> list[str]:
    cluster = chain.cluster
    for path in (chain.folder, chain.working_folder):
        if not _PLAIN_PATH.fullmatch(str(path)):
            raise UserError(f"{path!s:.200} has spaces, quotes, % or # in it, which sbatch cannot take; move it")
    options = {
        "job-name": f"{chain.name}-{job.stage}",
        "comment": comment(chain, job),
        "partition": job.partition,
        "account": cluster.account,
        "qos": cluster.qos,
        "reservation": cluster.reservation,
        "constraint": cluster.constraint,
        "exclude": cluster.exclude,
        "nodes": str(job.nodes),
        "ntasks-per-node": str(job.tasks_per_node),
        "cpus-per-task": job.cpus_per_task and str(job.cpus_per_task),
        "mem": job.memory,
        **_gpus(cluster, job),
        "time": job.time,
        "array": _array(cluster, job),
        "signal": job.lead and f"B:USR1@{job.lead}",
        "chdir": str(chain.working_folder),
        "output": f"{chain.folder}/logs/{job.stage}-{'%A_%a' if job.array > 1 else '%j'}.out",
        "open-mode": "append",  # a job that starts again goes on with its log
        "export": "NONE",
    }
    flags = ["--requeue", "--wait-all-nodes=1", "--kill-on-invalid-dep=yes", *cluster.options]
    return [*(f"--{name}={value}" for name, value in options.items() if value), *flags]


def comment(chain: Chain, job: Job) -> str:
    """By this a job is found again whose submission was cut off."""
    return f"shardtune:{chain.identity}:{job.stage}"


def _gpus(cluster: ClusterConfig, job: Job) -> dict[str, str]:
    if not job.gpus_per_node:
        return {}
    number = f"{cluster.gpu_type}:{job.gpus_per_node}" if cluster.gpu_type else str(job.gpus_per_node)
    return {cluster.gpu_flag: f"gpu:{number}" if cluster.gpu_flag == "gres" else number}


def _array(cluster: ClusterConfig, job: Job) -> str | None:
    if job.array == 1 and job.body != "prepare_share":
        return None
    limit = f"%{cluster.array_limit}" if cluster.array_limit else ""
    return f"0-{job.array - 1}{limit}"


def _settings(chain: Chain, job: Job) -> list[str]:
    """What the body needs to know; every value is quoted."""
    cluster = chain.cluster
    runs = chain.runs if job.stage in ("train", "export") else (chain.folder,)
    return [
        f"RUNS=({join(str(run) for run in runs)})",
        "RUN_DIR=${RUNS[${SLURM_ARRAY_TASK_ID:-0}]}" if len(runs) > 1 else "RUN_DIR=${RUNS[0]}",
        f"STAGE={quote(job.stage)}",
        f"SECRETS={_path_there(cluster.secrets)}",
        *(f"export {name}={quote(value)}" for name, value in chain.variables),
        *(f"export {name}={quote(value)}" for name, value in network_variables(cluster.network)),
        *(f"export {name}={quote(value)}" for name, value in cluster.variables.items()),
        *_environment(chain, job),
        "RENDERED=yes",
    ]


def _path_there(path: str) -> str:
    """A path for bash; the home that begins it is the one of the node."""
    home = re.match(r"~[A-Za-z0-9._-]*/", path)
    return home[0] + quote(path[home.end() :]) if home else quote(path)


def _environment(chain: Chain, job: Job) -> list[str]:
    environment, container = chain.cluster.environment, chain.cluster.container
    python = chain.python
    if environment.venv:
        python = f"{environment.venv}/bin/python"
    if environment.uv:
        python = f"{environment.uv}/.venv/bin/python"
    if environment.conda or container:
        python = "python"
    prefix, options = _container(chain, container, job) if container else ([], [])
    return [
        f"MODULES=({join(chain.cluster.modules)})",
        *([f"CONDA={quote(environment.conda)}"] if environment.conda else []),
        f"PYTHON=({join([*prefix, python])})",
        f"SRUN_CONTAINER=({join(options)})",
    ]


def _container(chain: Chain, container: ContainerConfig, job: Job) -> tuple[list[str], list[str]]:
    """What stands before `python`, and the options of srun, for commands to run in an image."""
    own = (chain.working_folder, chain.folder.parent, *chain.folders)
    seen = [folder for folder in own if not any(folder.is_relative_to(other) and folder != other for other in own)]
    sockets = ["/tmp"] if job.body == "prepare_ray" else []  # of Ray: each of its processes has a container of its own
    mounts = [*dict.fromkeys(map(str, seen)), *sockets, *container.mounts]
    pairs = [mount if ":" in mount else f"{mount}:{mount}" for mount in mounts]
    match container.engine:
        case "pyxis":
            workdir = f"--container-workdir={chain.working_folder}"
            return [], [f"--container-image={container.image}", f"--container-mounts={','.join(pairs)}", workdir]
        case "apptainer":
            binds = [part for pair in pairs for part in ("--bind", pair)]
            gpus = ["--nv"] if job.gpus_per_node else []
            return ["apptainer", "exec", *gpus, *binds, "--pwd", str(chain.working_folder), container.image], []
        case "docker":
            volumes = [part for pair in pairs for part in ("--volume", pair)]
            gpus = ["--gpus", "all"] if job.gpus_per_node else []
            given = (*dict(chain.variables), *dict(network_variables(chain.cluster.network)), *chain.cluster.variables)
            passed = [part for name in dict.fromkeys((*_PASSED, *given)) for part in ("--env", name)]
            shared = ["--network=host", "--ipc=host", f"--workdir={chain.working_folder}"]
            return ["docker", "run", "--rm", *shared, *gpus, *passed, *volumes, container.image], []


_PASSED = (
    *("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "SHARDTUNE_DEADLINE", "OMP_NUM_THREADS"),
    *("CUDA_VISIBLE_DEVICES", "SLURM_JOB_ID", "PYTHONUNBUFFERED", "NODES"),
    *("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH", "RAY_USAGE_STATS_ENABLED"),
)
"""Docker hands on no variable by itself; those of `cluster.secrets` are added where they are read (`common.sh`)."""
