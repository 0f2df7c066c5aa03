"""Runs inside Ray: Ray Train places the ranks, all or none, and starts them again; each of them calls `sft.train`.

driver ── TorchTrainer ─┬─ worker, rank 0 ── sft.train.train ── checkpoints in the run's folder
                        └─ worker, rank 1 ── …                     a start goes on from the newest committed one
"""

import time
from pathlib import Path
from typing import Any

from data_tools.errors import UserError
from launcher import attempts
from launcher.cluster import ClusterConfig
from launcher.environment import read_secrets
from launcher.ray_storage import get_beginning, get_file, put_file, remove_file, runs_of_this_machine
from launcher.run_folder import read_status
from sft.exits import FAILED, FINISHED, MISTAKE, STOPPED
from sft.record import STATUS, note_mistake


def train_on_ray(folder: Path, cluster: ClusterConfig, ranks: int) -> int:
    """Train a planned run on the Ray cluster that this process is a driver of; returns the exit code.

    Args:
        folder: the run's, on a file system that all nodes share, or beside `cluster.ray.storage`.
        ranks: workers, each with its share of a node.
    """
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.train.v2.api.exceptions import TrainingFailedError

    from sft.heartbeat import longest_wait
    from sft.run import TrainingRun

    storage = cluster.ray.storage
    wait = longest_wait(TrainingRun.open(folder).train.hang_timeout)
    resources = {"CPU": float(cluster.cpus_per_rank or 1)}
    if cluster.gpus_per_node:
        resources["GPU"] = cluster.gpus_per_node / cluster.ranks
    trainer = TorchTrainer(
        _worker,
        train_loop_config={
            "folder": str(folder),
            "secrets": cluster.secrets,
            "storage": storage,
            "runs": cluster.ray.runs,
            "launch": time.time_ns(),
            "wait": wait,
        },
        torch_config=TorchConfig(timeout_s=round(wait)),
        scaling_config=ScalingConfig(
            num_workers=ranks,
            use_gpu=bool(cluster.gpus_per_node),
            resources_per_worker=resources,
            placement_strategy="PACK" if cluster.nodes == 1 else "SPREAD",
        ),
        run_config=RunConfig(
            name=folder.name,
            storage_path=f"{storage.rstrip('/')}/{folder.name}/jobs" if storage else str(folder / "jobs" / "ray-train"),
            failure_config=FailureConfig(max_failures=cluster.requeue.max_failures),
        ),
    )
    (folder / MISTAKE).unlink(missing_ok=True)
    if storage:
        remove_file(folder, storage, MISTAKE)
    try:
        trainer.fit()
    except TrainingFailedError as error:
        if storage:
            get_file(folder, storage, MISTAKE)
        said = (folder / MISTAKE).read_text("utf-8") if (folder / MISTAKE).exists() else str(error)
        print(f"error: {' '.join(said.split())[:500]}", flush=True)
        return FAILED
    if storage:
        get_file(folder, storage, STATUS)
    return STOPPED if read_status(folder)["phase"] == "stopped" else FINISHED


def _worker(settings: dict[str, Any]) -> None:
    """One rank. Ray has set RANK and its like, and started the process group."""
    folder, storage = Path(settings["folder"]), settings["storage"]
    from sft.node_local import find_ranks_here
    from sft.run import TrainingRun
    from sft.train import train
    from sft.world import join_world

    read_secrets(Path(settings["secrets"]).expanduser())
    world = join_world(settings["wait"])
    if storage:
        folder = runs_of_this_machine(settings["runs"]) / folder.name
        folder.mkdir(parents=True, exist_ok=True)
        world = find_ranks_here(folder, world)
        if world.keeps_folder:
            get_beginning(folder, storage)
        world.barrier()
    if world.is_main:
        _begin(folder, settings["launch"], storage)
    try:
        run = TrainingRun.open(folder)
        code = train(run, resuming=True, world=world, signalled=lambda: False)
    except UserError as error:  # the driver says it; Ray would give the traceback of each start
        note_mistake(folder, error)
        if storage and (folder / MISTAKE).exists():
            put_file(folder, storage, MISTAKE)
        raise
    if world.is_main:
        attempts.end(folder, code, asked="no")
        if storage:
            put_file(folder, storage, STATUS)


def _begin(folder: Path, launch: int, storage: str | None) -> None:
    """Note the start, unless the one before met a mistake or committed nothing: Ray starts workers again whatever they
    died of.

    Args:
        launch: another number for each launch; a person may launch again whatever there was before.

    Raises:
        UserError: it is not to be tried again.
    """
    if storage:  # this machine may have had an earlier launch, or not this one's start before
        (folder / MISTAKE).unlink(missing_ok=True)
        get_file(folder, storage, MISTAKE)
    if (folder / MISTAKE).exists():
        raise UserError((folder / MISTAKE).read_text("utf-8"))
    history = attempts.read_attempts(folder)
    again = bool(history) and "begin" in history[-1] and history[-1]["job"] == launch
    if again and history[-1]["committed"] == attempts.committed(folder)["committed"]:
        raise UserError(f"the start before committed nothing, at step {history[-1]['step']:,}: giving up")
    (folder / "stop").unlink(missing_ok=True)
    attempts.note_begin(folder, job=launch)
