"""Sources whose files were changed after the token store was made of them: it still has the tokens of the old ones."""

import importlib.util
from pathlib import Path
from typing import Any

from data_tools.config import DataConfig, SourceConfig
from data_tools.errors import UserError
from data_tools.files import file_name, is_hub_id, is_remote
from data_tools.sources import local_splits
from data_tools.store import MANIFEST, TokenStore, file_digest
from data_tools.verified import known_files


def stale_sources(config: DataConfig, store: TokenStore, record: Path) -> tuple[list[str], dict[str, Any]]:
    """Compare the files of sources on this machine with those that the store was made of.

    A file is read only if it was changed (or put there) later than the manifest was written. What is in an object
    store or on the hub, and what is not here any more, is not compared.

    Args:
        config: the run's `data` section.
        store: made of the same sources.
        record: `verified.json`, which knows what was read before.

    Returns:
        The names of the sources that are others now, and what the record is to say of the files that were read.
    """
    known, seen = known_files(record), dict[str, Any]()
    finished = (store.folder / MANIFEST).stat().st_mtime_ns
    made = list(zip(store.manifest["sources"], store.manifest["settings"]["sources"], strict=True))
    stale = []
    for number, source in enumerate(config.sources):
        of_source = [(told["name"], facts["files"]) for told, facts in made if told["configured"] == number]
        splits = _files_here(source)
        if splits is None:
            continue
        if len(splits) != len(of_source):
            stale += [name for name, _ in of_source]
            continue
        for (name, files), here in zip(of_source, splits, strict=True):
            newer = {file for file in here if file.stat().st_ctime_ns > finished}
            seen |= {str(file): _facts(file, known) for file in newer}
            now = [(file_name(str(file)), seen[str(file)]["blake3"] if file in newer else None) for file in here]
            if not _is_same(files, now):
                stale.append(name)
    return stale, seen


def _files_here(source: SourceConfig) -> list[list[Path]] | None:
    """The files of each of its splits; None: it has none that could be compared here."""
    path = str(source.path)
    if source.sample or is_remote(path) or is_hub_id(path):
        return None
    if Path(path).is_dir() and importlib.util.find_spec("datasets") is None:
        return None  # training alone does without it, and it is what reads folders
    try:
        splits = local_splits(source)
    except UserError:
        return None  # they are not on this machine
    return [[Path(file) for file in sorted(str(Path(file).absolute()) for file in files)] for files in splits.values()]


def _facts(file: Path, known: dict[str, Any]) -> dict[str, Any]:
    state = file.stat()
    facts = {"size": state.st_size, "mtime_ns": state.st_mtime_ns}
    before = known.get(str(file))
    if isinstance(before, dict) and before == {**facts, "blake3": before.get("blake3")}:
        return before
    return {**facts, "blake3": file_digest(file)}


def _is_same(made: list[dict[str, str]], now: list[tuple[str, str | None]]) -> bool:
    """Whether names and contents are those that were read; a digest of None: nothing says that it was changed."""
    return len(made) == len(now) and all(
        facts["name"] == name and digest in (None, facts["blake3"])
        for facts, (name, digest) in zip(made, now, strict=True)
    )
