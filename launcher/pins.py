"""What `fetch` pinned, for the commands after it."""

from data_tools.files import is_hub_id
from data_tools.hub import cached, look_up
from data_tools.lock import LOCK_FILE, Lock
from launcher.config import RunConfig
from launcher.environment import go_offline


def use_lock(config: RunConfig) -> RunConfig:
    """A run with a lock asks the hub for nothing, and its model is the pinned commit; data sets and tokenizer are
    pinned where they are read.

    Raises:
        UserError: the lock pins another model than the configuration asks for.
    """
    lock = Lock.read(config.folder / LOCK_FILE)
    if lock is None:
        return config
    go_offline()
    model = config.model
    if model.path is None or not is_hub_id(model.path):
        return config
    commit = lock.find("model", model.path, model.revision).commit
    return config.model_copy(update={"model": model.model_copy(update={"revision": commit})})


def require_model(config: RunConfig) -> None:
    """Ask the hub for a model that is not here, once: transformers would try again and again where nobody answers.

    Raises:
        UserError: nobody does, or the hub has no such model.
    """
    model = config.model
    if model.path is None or not is_hub_id(model.path):
        return
    if cached("model", model.path, model.revision or "main", ["config.json"]) is None:
        look_up("model", model.path, model.revision)
