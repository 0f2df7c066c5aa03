"""What `fetch` pinned, for the commands after it."""

from pathlib import Path

from data_tools.errors import UserError
from data_tools.files import is_hub_id, near_path
from data_tools.hub import cached, look_up
from data_tools.lock import LOCK_FILE, Lock
from data_tools.store import write_text
from launcher.config import RunConfig
from launcher.environment import go_offline
from launcher.run_folder import newest_checkpoint, sweep_of


def use_lock(config: RunConfig) -> RunConfig:
    """A run with a lock asks the hub for nothing, and its model is the pinned commit; data sets and tokenizer are
    pinned where they are read.

    Raises:
        UserError: the lock pins another model than the configuration asks for.
    """
    own, sweep = config.folder / LOCK_FILE, sweep_of(config.folder)
    if not own.exists() and sweep is not None and (sweep / LOCK_FILE).exists():  # it is fetched once for all runs
        write_text(own, (sweep / LOCK_FILE).read_text("utf-8"))
    if own.exists():
        go_offline()
    return pinned(config)


def pinned(config: RunConfig) -> RunConfig:
    """The run with the commit of its model that its lock has, if it has one.

    Raises:
        UserError: the lock pins another model.
    """
    lock, model = Lock.read(config.folder / LOCK_FILE), config.model
    if lock is None or model.path is None or not is_hub_id(model.path):
        return config
    commit = lock.find("model", model.path, model.revision).commit
    return config.model_copy(update={"model": model.model_copy(update={"revision": commit})})


def follow_sweep(config: RunConfig, sweep: Path) -> None:
    """A run of a sweep that has not begun takes the lock that the sweep has by then.

    Raises:
        UserError: it has begun, and the sweep was fetched anew since.
    """
    own, common = config.folder / LOCK_FILE, sweep / LOCK_FILE
    if newest_checkpoint(config.folder) is None:
        own.unlink(missing_ok=True)
    elif own.exists() and common.exists() and own.read_text("utf-8") != common.read_text("utf-8"):
        raise UserError(
            f"{config.folder} has checkpoints and a {LOCK_FILE} that {sweep} was begun with, and that is another now; "
            f"copy it from the run to the sweep, or launch another sweep with name=NAME"
        )


def require_model(config: RunConfig) -> None:
    """Training needs a model; what is wrong with its name is said before anything is planned.

    Raises:
        UserError: none is given, or there is no such folder.
    """
    if not config.model.is_given:
        raise UserError(
            "model is missing; set model.path to a folder or hub id, or model.config={architecture: llama, …} for "
            "random weights"
        )
    check_model_path(config)


def check_model_path(config: RunConfig) -> None:
    """A model that is neither here nor can be on the hub, and adapters that are not here.

    Raises:
        UserError: it is so.
    """
    lora = config.model.lora
    if lora is not None and lora.start_from is not None and not Path(lora.start_from).is_dir():
        raise UserError(
            f"model.lora.start_from: there is no folder {lora.start_from}{near_path(lora.start_from)}; "
            f"`shardtune export RUN --adapter` writes adapter/ into a run's folder"
        )
    path = config.model.path
    if path is not None and not is_hub_id(path) and not Path(path).exists():
        raise UserError(
            f"model.path: there is no folder {path}{near_path(path)}, and it is not the id of a hub (owner/name); "
            f"check the path"
        )


def find_model(config: RunConfig) -> None:
    """Ask the hub for a model that is not here, once: transformers would try again and again where nobody answers.

    Raises:
        UserError: nobody does, or the hub has no such model.
    """
    model = config.model
    if model.path is None or not is_hub_id(model.path):
        return
    if cached("model", model.path, model.revision or "main", ["config.json"]) is None:
        look_up("model", model.path, model.revision)
