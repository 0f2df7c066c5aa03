"""Everything that a run needs from elsewhere → the cache of this machine, and a lock that pins it."""

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from itertools import zip_longest
from pathlib import Path
from typing import Any

from data_tools.config import DataConfig, SourceConfig
from data_tools.errors import UserError
from data_tools.files import content_digest, file_name, file_size, is_hub_id
from data_tools.hub import LookUp, download, look_up, needed_files
from data_tools.lock import Kind, Lock, Pin
from data_tools.pinned import files_of_folder, from_common
from data_tools.sources import all_files, dataset_splits, local_splits


def fetch(data: DataConfig, model: str | None, model_revision: str | None, lock_file: Path) -> Lock:
    """Download what is on the hub, and write the lock; where it exists, verify that everything is what it says.

    Args:
        data: the run's `data` section.
        model: a hub id or folder; None: the model has random weights.
        model_revision: a commit, tag or branch of the model.
        lock_file: `runs/NAME/lock.json`.

    Raises:
        UserError: something is not there, or is not what the lock says.
    """
    before = Lock.read(lock_file)
    ask = cache(look_up)  # all sources of one data set are of one commit
    pins = [_source(source, before, ask) for source in data.sources if source.sample is None]
    if isinstance(data.tokenizer, str):
        pins.append(_repository("tokenizer", data.tokenizer, data.tokenizer_revision, before, ask))
    if model is not None:
        pins.append(_repository("model", model, model_revision, before, ask))
    now = Lock(lock_file, pins)
    if before is None:
        now.write()
    else:
        _compare(before, now)
    return now


def _source(config: SourceConfig, before: Lock | None, ask: LookUp) -> Pin:
    name = str(config.path)
    if is_hub_id(name):
        return _dataset(config, before, ask)
    files = all_files(local_splits(config))
    return Pin("files", _portable(name), _describe(from_common(files)), config=config.config, split=config.split)


def _dataset(config: SourceConfig, before: Lock | None, ask: LookUp) -> Pin:
    name = str(config.path)
    if before is not None:
        pin = before.find("dataset", name, config.revision, config.config, config.split)
    else:
        commit, _ = ask("dataset", name, config.revision)
        splits = dataset_splits(config, commit)
        pin = Pin("dataset", name, {}, config.revision, commit, config.config, config.split, splits)
    files = download("dataset", name, str(pin.commit), all_files(pin.splits or {}))
    return replace(pin, files=_describe(files))


def _repository(kind: Kind, name: str, revision: str | None, before: Lock | None, ask: LookUp) -> Pin:
    """A tokenizer or model, on the hub or in a folder."""
    if not is_hub_id(name):
        if not Path(name).is_dir() and not (kind == "tokenizer" and Path(name).is_file()):
            raise UserError(f"{kind}: there is no folder {name}, and it is not the id of a hub; check the path")
        return Pin("files", _portable(name), _describe(files_of_folder(kind, Path(name))))
    if before is not None:
        pin = before.find(kind, name, revision)
        commit, files = str(pin.commit), list(pin.files)
    else:
        commit, everything = ask(kind, name, revision)
        files = needed_files(kind, everything)
        pin = Pin(kind, name, {}, revision, commit)
    if kind == "model" and not any(file.endswith(".safetensors") for file in files):
        raise UserError(f"model.path: {name} has no safetensors weights; choose a revision that has them")
    return replace(pin, files=_describe(download(kind, name, commit, files)))


def _compare(before: Lock, now: Lock) -> None:
    for old, new in zip_longest(before.pins, now.pins):
        if old is None or new is None or old.asked != new.asked:
            pinned, asked = (pin.asked if pin else "nothing" for pin in (old, new))
            raise UserError(
                f"{before.path} pins {pinned} where the configuration asks for {asked}; delete the lock and fetch again"
            )
        before.compare(old, new.digests)


def _portable(name: str) -> str:
    """Locks are the same on every machine: no absolute paths."""
    return file_name(name) if Path(name).is_absolute() else name


def _describe(files: Mapping[str, str | Path]) -> dict[str, dict[str, Any]]:
    return {
        name: {"size": file_size(str(file)), "blake3": content_digest(str(file))}
        for name, file in sorted(files.items())
    }
