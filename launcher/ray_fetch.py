"""Fetch on machines that share no cache: each takes the same commits from the hub, and compares files with the lock."""

import socket
from pathlib import Path
from typing import Any

from rich.console import Console

from data_tools.errors import UserError
from data_tools.lock import LOCK_FILE
from data_tools.store import write_text
from launcher.config import RUN_FILE, load_run
from launcher.environment import read_secrets
from launcher.ray_storage import runs_of_this_machine
from launcher.stages import fetch_stage


def fetch_on_all_nodes(folder: Path, runs: str | None) -> None:
    """Fetch on the other nodes of the cluster as it was fetched here.

    Args:
        folder: the run's folder here, with its lock.
        runs: `cluster.ray.runs`.

    Raises:
        UserError: a node cannot; which one, and what it said.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    ray.init(log_to_driver=False, logging_level="ERROR")
    try:
        here = ray.get_runtime_context().get_node_id()
        others = [node["NodeID"] for node in ray.nodes() if node["Alive"] and node["NodeID"] != here]
        texts = {name: (folder / name).read_text("utf-8") for name in (RUN_FILE, LOCK_FILE)}
        task: Any = ray.remote(num_cpus=0)(_fetch_here)
        promises = [
            task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(
                folder.name, runs, texts
            )
            for node in others
        ]
        for host, wrong in ray.get(promises):
            if wrong:
                raise UserError(f"fetch on {host}: {wrong}")
    finally:
        ray.shutdown()
    print(f"fetched on {len(others)} more nodes", flush=True)


def _fetch_here(name: str, runs: str | None, texts: dict[str, str]) -> tuple[str, str | None]:
    """On another node: its name, and what is wrong."""
    folder = runs_of_this_machine(runs) / name
    folder.mkdir(parents=True, exist_ok=True)
    for file, text in texts.items():
        write_text(folder / file, text)
    try:
        config = load_run(str(folder / RUN_FILE), [])
        read_secrets(Path(config.cluster.secrets).expanduser())  # each node has its own
        fetch_stage(config.model_copy(update={"runs": str(folder.parent), "name": name}), Console(quiet=True))
    except UserError as error:
        return socket.gethostname(), str(error)
    return socket.gethostname(), None
