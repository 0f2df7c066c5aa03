"""`data.sources` → the files of each source: paths, globs, folders, URIs, data sets on the hub, the embedded sample."""

from dataclasses import dataclass
from functools import cache
from glob import has_magic
from pathlib import Path

from data_tools.config import SourceConfig
from data_tools.errors import UserError
from data_tools.files import COMPRESSIONS, FORMATS, check_format, find_files, is_hub_id, is_remote, near_path
from data_tools.hub import LookUp, asking_hub, download, look_up, require_cached
from data_tools.lock import Lock


@dataclass(frozen=True)
class SourceFiles:
    """One named source: its data files in a fixed order."""

    name: str
    files: tuple[str, ...]
    """Paths or URIs."""
    configured: int = 0
    """Its position in `data.sources`; `split: all` makes several sources of one."""


def resolve_sources(configs: list[SourceConfig], sample_file: Path, lock: Lock | None = None) -> list[SourceFiles]:
    """Find the files of every source.

    Args:
        configs: `data.sources`.
        sample_file: where the embedded sample lies.
        lock: pins the data sets that are on the hub; None: they are what they are there now.

    Raises:
        UserError: nothing is there, or it is not clear which split is meant.
    """
    found: list[SourceFiles] = []
    ask = cache(look_up)  # all sources of one data set are of one commit
    for number, config in enumerate(configs):
        for name, files in _splits(config, sample_file, lock, ask).items():
            for file in files:
                check_format(file)
            # Absolute: actors of a cluster run in other folders.
            here = [file if is_remote(file) else str(Path(file).absolute()) for file in files]
            found.append(SourceFiles(_free_name(name, found), tuple(sorted(here)), number))
    return found


def _free_name(name: str, found: list[SourceFiles]) -> str:
    """Reports tell sources apart by their names: the second `chats` becomes `chats-2`."""
    taken = {source.name for source in found}
    numbered = (f"{name}-{number}" for number in range(2, len(found) + 3))
    return name if name not in taken else next(each for each in numbered if each not in taken)


def _splits(config: SourceConfig, sample_file: Path, lock: Lock | None, ask: LookUp) -> dict[str, list[str]]:
    """The files of each split that is asked for, called as reports will call them."""
    if config.sample:
        splits = {str(config.sample): [str(sample_file)]}
    elif is_hub_id(str(config.path)):
        splits = _dataset_files(config, lock, ask)
    else:
        splits = local_splits(config)
    if config.name is None:
        return splits
    return {config.name if len(splits) == 1 else f"{config.name}/{split}": files for split, files in splits.items()}


def local_splits(config: SourceConfig) -> dict[str, list[str]]:
    """The files of each split that is asked for; without splits there is one, called like the file."""
    location = str(config.path).removeprefix("file://")
    if not Path(location).is_dir():
        return {_stem(location): _files(location, config)}
    if config.revision is not None:
        raise UserError(f"data.sources: {location} is a folder here and has no revision; leave it out")
    return choose_splits(location, folder_splits(location, config), config)


def _stem(location: str) -> str:
    """`chats` of `data/chats.jsonl.gz`; of a glob, the folder that it looks into."""
    while has_magic(Path(location).name):
        location = str(Path(location).parent)
    name = Path(location).name or "files"
    while Path(name).suffix.lower() in (*FORMATS, *COMPRESSIONS):
        name = Path(name).stem
    return name


def _dataset_files(config: SourceConfig, lock: Lock | None, ask: LookUp) -> dict[str, list[str]]:
    """The splits that a source asks for: split → local files; those of the lock, or those of the hub now.

    Raises:
        UserError: the lock pins something else, its files are not here, or the hub does not give them.
    """
    name = str(config.path)
    if lock is not None:
        pin = lock.find("dataset", name, config.revision, config.config, config.split)
        splits, commit = pin.splits or {}, str(pin.commit)
        found = require_cached("dataset", name, commit, all_files(splits))
    else:
        commit, _ = ask("dataset", name, config.revision)
        splits = dataset_splits(config, commit)
        found = download("dataset", name, commit, all_files(splits))
    return {split: [str(found[file]) for file in files] for split, files in splits.items()}


def all_files(splits: dict[str, list[str]]) -> list[str]:
    """The files of all splits."""
    return [file for files in splits.values() for file in files]


def dataset_splits(config: SourceConfig, commit: str) -> dict[str, list[str]]:
    """The splits of a hub data set that a source asks for: split → paths in the repository; asks the hub."""
    name = str(config.path)
    with asking_hub("dataset", name, commit):
        splits = choose_splits(name, folder_splits(name, config, commit), config)
    root = f"hf://datasets/{name}@{commit}/"
    for file in all_files(splits):
        if not file.startswith(root):
            raise UserError(
                f"data.sources: {name} refers to {file}, outside of itself; download that and give its path"
            )
    return {split: [file.removeprefix(root) for file in files] for split, files in splits.items()}


def _files(location: str, config: SourceConfig) -> list[str]:
    if asked := [key for key in ("config", "split", "revision") if getattr(config, key) is not None]:
        raise UserError(f"data.sources: {location} has no {asked[0]}; leave `{asked[0]}` out, or give a folder")
    files = find_files(location)
    if not files:
        where, near = ("no file", "") if is_remote(location) else ("no file or folder", near_path(location))
        raise UserError(f"data.sources: {where} matches {location}{near}; check the path")
    return files


def choose_splits(place: str, splits: dict[str, list[str]], config: SourceConfig) -> dict[str, list[str]]:
    """The splits that a source asks for, of those that are in `place`.

    Raises:
        UserError: it asks for one that is not there, or for none where there are several.
    """
    if config.split == "all":
        return dict(sorted(splits.items()))
    if config.split is None and len(splits) == 1:
        return splits
    if config.split in splits:
        return {config.split: splits[config.split]}
    if not splits:
        raise UserError(f"data.sources: {place} has no data file in a known layout; give the path of a file or a glob")
    known = ", ".join(sorted(splits))
    if config.split is None:
        raise UserError(f"data.sources: {place} has several splits; set `split` to one of {known}, or to all")
    raise UserError(f"data.sources: {place} has no split {config.split}; set `split` to one of {known}, or to all")


def folder_splits(place: str, config: SourceConfig, commit: str | None = None) -> dict[str, list[str]]:
    """Let `datasets` read the layout (README metadata, split names in file names): split → its files.

    Args:
        place: a folder, or the id of a data set on the hub.
        config: its `config` is the data set's configuration.
        commit: the revision of the data set on the hub.
    """
    import datasets

    try:
        builder = datasets.load_dataset_builder(place, config.config, revision=commit)
    except (ValueError, RuntimeError, FileNotFoundError) as error:
        lines = " ".join(str(error).splitlines()[:2])  # the second line lists the configurations
        raise UserError(f"data.sources: {place}: {lines}") from None
    return {str(split): [str(file) for file in files] for split, files in (builder.config.data_files or {}).items()}
