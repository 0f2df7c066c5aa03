"""A token store in an object store, and its copy on this machine.

    data.store: s3://bucket/tokens   →   ~/.cache/shardtune/stores/DIGEST/, with the URI in .remote

Files go up when they are whole, the manifest last; they come down when they are wanted. A store in a plain folder has
no `.remote`, and then nothing here does anything.
"""

import hashlib
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

from data_tools.errors import UserError
from data_tools.files import is_remote, open_file_system, writing
from data_tools.store import MANIFEST, TokenStore

REMOTE = ".remote"


def local_folder(location: str) -> Path:
    """The folder of a store: the path itself, or the copy of what a URI names (below `SHARDTUNE_CACHE`)."""
    location = location.removeprefix("file://")
    if not is_remote(location):
        return Path(location)
    cache = Path(os.environ.get("SHARDTUNE_CACHE") or Path.home() / ".cache" / "shardtune")
    folder = cache / "stores" / hashlib.sha256(location.encode()).hexdigest()[:16]
    if not (folder / REMOTE).exists():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / REMOTE).write_text(location.rstrip("/"), encoding="utf-8")
    return folder


def worker_folder(location: str) -> Path:
    """Where one process makes shards: the store itself, or a folder of its own below the copy of a remote store.

    Two processes may make the same unit; on their way to an object store their files must not meet.
    """
    folder = local_folder(location)
    if is_remote(location):
        folder = folder / "workers" / f"{socket.gethostname()}-{os.getpid()}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / REMOTE).write_text(location.rstrip("/"), encoding="utf-8")
    return folder


def open_store(location: Path | str) -> TokenStore:
    """Open a finished store; of one in an object store, shards come down when they are first read.

    Raises:
        UserError: there is none.
    """
    folder = local_folder(str(location))
    mirror = Mirror(folder)
    if mirror.uri:
        manifest = folder / MANIFEST
        before = manifest.read_bytes() if manifest.exists() else None
        if mirror.pull(MANIFEST, again=True) and before not in (None, manifest.read_bytes()):
            for name in ("shards", "tokenizer"):  # of the store that was there before
                shutil.rmtree(folder / name, ignore_errors=True)
            (folder / "index.arrow").unlink(missing_ok=True)
        mirror.pull_folder("tokenizer")
    return TokenStore(folder, mirror.pull)


@contextmanager
def naming_damage(folder: Path) -> Iterator[None]:
    """Turn what reading a damaged store raises into one line; `verify` compares everything, which takes longer.

    Raises:
        UserError: a file of the store is missing, cut off, or not what it should be.
    """
    try:
        yield
    except (OSError, pa.ArrowException, LookupError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        cure = "copy it again, or delete it and run `shardtune prepare`"
        raise UserError(f"the token store {folder} is damaged ({type(error).__name__}: {reason}); {cure}") from error


class Mirror:
    """The files of a store here and there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        marker = folder / REMOTE
        self.uri = marker.read_text(encoding="utf-8") if marker.exists() else None
        self._system: Any = None
        self._root = ""
        if self.uri:
            self._system, self._root = open_file_system(self.uri)

    def push(self, *names: str) -> None:
        """Copy files of the folder up, one after the other.

        Raises:
            UserError: the object store refuses.
        """
        for name in names if self.uri else ():
            with writing(f"{self.uri}/{name}"):
                self._system.put_file(str(self.folder / name), f"{self._root}/{name}")

    def pull(self, name: str, again: bool = False) -> bool:
        """Copy a file down where it is not here yet, or `again`; whether it is here now."""
        path = self.folder / name
        if self.uri and (again or not path.exists()):
            with writing(f"{self.uri}/{name}"):
                self._system.invalidate_cache()
                if not self._system.exists(f"{self._root}/{name}"):
                    path.unlink(missing_ok=True)
                    return False
                path.parent.mkdir(parents=True, exist_ok=True)
                temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
                self._system.get_file(f"{self._root}/{name}", str(temporary))
                os.replace(temporary, path)
        return path.exists()

    def push_folder(self, name: str) -> None:
        """Copy all files of a folder up."""
        if self.uri:
            self.push(*(f"{name}/{path.name}" for path in sorted((self.folder / name).iterdir())))

    def pull_folder(self, name: str) -> None:
        """Copy all files of a folder down."""
        if self.uri:
            for path in self._list(name):
                self.pull(f"{name}/{path.rpartition('/')[2]}")

    def remove(self, name: str) -> None:
        """Delete a folder there."""
        if self.uri and (files := self._list(name)):
            with writing(f"{self.uri}/{name}"):
                self._system.rm(files)

    def _list(self, name: str) -> list[str]:
        with writing(f"{self.uri}/{name}"):
            self._system.invalidate_cache()
            found: list[str] = self._system.find(f"{self._root}/{name}")
            return found
