"""What is prepared is what the lock says. The digests of the sources are those that the fingerprint needs anyway."""

from collections.abc import Mapping
from os.path import commonpath
from pathlib import Path, PurePosixPath

from data_tools.config import SourceConfig
from data_tools.files import content_digest, is_hub_id
from data_tools.hub import needed_files, require_cached
from data_tools.lock import Kind, Lock
from data_tools.sources import SourceFiles


def check_sources(
    lock: Lock, configs: list[SourceConfig], sources: list[SourceFiles], digests: Mapping[str, str]
) -> None:
    """Compare the files of every source with what `fetch` pinned.

    Args:
        lock: of the run.
        configs: `data.sources`.
        sources: what was found for them.
        digests: BLAKE3 of every file of `sources`.

    Raises:
        UserError: a file is another one, is missing, or nothing is pinned for a source.
    """
    for number, config in enumerate(configs):
        name = str(config.path)
        if config.sample:
            continue
        if is_hub_id(name):
            pin = lock.find("dataset", name, config.revision, config.config, config.split)
            here = require_cached("dataset", name, str(pin.commit), list(pin.files))
            lock.compare(pin, {file: digests[str(path.absolute())] for file, path in here.items()})
        else:
            files = [file for source in sources if source.configured == number for file in source.files]
            found = {file: digests[path] for file, path in from_common(files).items()}
            lock.compare(lock.find_local(name, found, config.config, config.split), found)


def check_tokenizer(lock: Lock, name: str, revision: str | None) -> None:
    """Compare the files of a tokenizer, on the hub or in a folder, with what `fetch` pinned.

    Raises:
        UserError: they are not the same.
    """
    if is_hub_id(name):
        pin = lock.find("tokenizer", name, revision)
        here = require_cached("tokenizer", name, str(pin.commit), list(pin.files))
        lock.compare(pin, {file: content_digest(str(path)) for file, path in here.items()})
    else:
        found = {file: content_digest(str(path)) for file, path in files_of_folder("tokenizer", Path(name)).items()}
        lock.compare(lock.find_local(name, found), found)


def from_common(files: list[str]) -> dict[str, str]:
    """Files by their path from the folder that they have in common."""
    common = commonpath([str(PurePosixPath(file).parent) for file in files])
    return {PurePosixPath(file).relative_to(common).as_posix(): file for file in files}


def files_of_folder(kind: Kind, folder: Path) -> dict[str, Path]:
    """The files in a folder that a tokenizer or model is loaded from; a file alone is a SentencePiece model."""
    if folder.is_file():
        return {folder.name: folder}
    inside = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    return {file: folder / file for file in needed_files(kind, inside)}
