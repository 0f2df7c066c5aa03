"""Runs on machines that share no folder: everything that outlives a machine is in an object store.

    cluster.ray.storage: s3://bucket/runs   →   s3://bucket/runs/NAME/   tokens/  run.yaml  plan/  checkpoints/
                                                                         status.json  model/  report.html  …

Each machine has a run folder of its own. The driver puts there what ranks begin with, and takes what they made.
"""

from pathlib import Path

from data_tools.mirror import cache_folder
from launcher.config import RUN_FILE, RunConfig
from sft.elsewhere import Elsewhere

SETTING = "cluster.ray.storage"
_BEGIN = (RUN_FILE, "plan")
"""What ranks begin with."""
_RESULTS = ("model", "adapter", "report.html", "loss.png", "evals", "jobs/ends")


def runs_of_this_machine(runs: str | None) -> Path:
    """The folder of runs: `cluster.ray.runs`, by default below the cache."""
    return Path(runs).expanduser() if runs else cache_folder() / "runs"


def in_storage(config: RunConfig, storage: str) -> RunConfig:
    """A run whose token store and checkpoints are there, and each machine's folder its own."""
    store = config.data.store or f"{storage.rstrip('/')}/{config.name}/tokens"
    checkpoint = config.checkpoint.model_copy(update={"copy_to": storage, "node_local": True})
    data = config.data.model_copy(update={"store": store})
    return config.model_copy(update={"data": data, "checkpoint": checkpoint})


def put_beginning(folder: Path, storage: str) -> None:
    """Put what ranks begin with."""
    _put(folder, storage, _BEGIN)


def put_results(folder: Path, storage: str) -> None:
    """Put what a run ends with."""
    _put(folder, storage, _RESULTS)


def put_file(folder: Path, storage: str, name: str) -> None:
    """Put one file of a run."""
    _there(folder, storage).put(folder / name, name)


def get_file(folder: Path, storage: str, name: str) -> bool:
    """Take one file of a run, if there is one; whether there was."""
    there = _there(folder, storage)
    found = name in there.names()
    if found:
        there.get(name, folder / name)
    return found


def remove_file(folder: Path, storage: str, name: str) -> None:
    """Remove one file of a run, if there is one."""
    _there(folder, storage).remove_file(name)


def get_beginning(folder: Path, storage: str) -> None:
    """Take what ranks begin with; one process of a machine does it."""
    there = _there(folder, storage)
    for name in there.names():
        if name.split("/")[0] in _BEGIN:
            there.get(name, folder / name)


def _put(folder: Path, storage: str, names: tuple[str, ...]) -> None:
    there = _there(folder, storage)
    for name in names:
        paths = [folder / name] if (folder / name).is_file() else sorted((folder / name).rglob("*"))
        for path in paths:
            if path.is_file():
                there.put(path, str(path.relative_to(folder)))


def _there(folder: Path, storage: str) -> Elsewhere:
    return Elsewhere(f"{storage.rstrip('/')}/{folder.name}", SETTING)
