"""A token store in an object store, and its copy on this machine.

    data.store: s3://bucket/tokens   →   ~/.cache/shardtune/stores/DIGEST/, with the URI in .remote

Files go up when they are whole, the manifest last; they come down when they are wanted. A store in a plain folder has
no `.remote`, and then nothing here does anything.
"""

import fcntl
import hashlib
import os
import shutil
import socket
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pyarrow as pa

from data_tools.errors import UserError
from data_tools.files import is_remote, open_file_system, writing
from data_tools.store import MANIFEST, TokenStore, atomically, write_text

REMOTE = ".remote"
LOCK = ".opening"
"""Held by the one process that brings the copy up to date."""
_COPIED = ("shards/[!.]*", "tokenizer/[!.]*", "index.arrow", "rejects.jsonl")
"""What a copy has of a store, beside its manifest."""


def cache_folder() -> Path:
    """Where this machine keeps copies: `SHARDTUNE_CACHE`, or `~/.cache/shardtune`."""
    return Path(os.environ.get("SHARDTUNE_CACHE") or Path.home() / ".cache" / "shardtune")


def local_folder(location: str) -> Path:
    """The folder of a store: the path itself, or the copy of what a URI names (below `SHARDTUNE_CACHE`)."""
    location = location.removeprefix("file://")
    if not is_remote(location):
        return Path(location)
    folder = cache_folder() / "stores" / hashlib.sha256(location.encode()).hexdigest()[:16]
    if not (folder / REMOTE).exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / REMOTE, location.rstrip("/"))
    return folder


def worker_folder(location: str) -> Path:
    """Where one process makes shards: the store itself, or a new folder below the copy of a remote store.

    Two processes may make the same unit; on their way to an object store their files must not meet, nor those of an
    earlier preparation, whose processes may have had the same numbers.
    """
    folder = local_folder(location)
    if is_remote(location):
        workers = folder / "workers"
        workers.mkdir(exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f"{socket.gethostname()}-{os.getpid()}-", dir=workers))
        write_text(folder / REMOTE, location.rstrip("/"))
    return folder


def open_store(location: Path | str) -> TokenStore:
    """Open a finished store; of one in an object store, shards come down when they are first read.

    Raises:
        UserError: there is none, or its tokenizer is not the one that it was made with.
    """
    mirror = Mirror(local_folder(str(location)))
    with mirror.locked():
        mirror.refresh()
        mirror.pull_folder("tokenizer")
        store = TokenStore(mirror.folder, mirror.pull)
    store.check_tokenizer()
    return store


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

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Of the processes that share the copy, on this machine or by a shared folder, one at a time."""
        if not self.uri:
            yield
            return
        with writing(f"{self.uri} (its copy in {self.folder})"):
            lock = open(self.folder / LOCK, "w")  # noqa: SIM115 -- what happens inside says itself what went wrong
            fcntl.flock(lock, fcntl.LOCK_EX)
        with lock:
            yield

    def refresh(self) -> bool:
        """Make the copy one of the store that is there now; whether that is finished.

        Files of a store that was there before are deleted first and the manifest comes last, so that who is killed here
        leaves no manifest beside files of another store. To be called when `locked`.
        """
        manifest = self.folder / MANIFEST
        if self.uri:
            before = manifest.read_bytes() if manifest.exists() else None
            now = self._read(MANIFEST)
            if now is None or now != before:
                manifest.unlink(missing_ok=True)
            if now is not None and now != before:
                for pattern in _COPIED:
                    for path in self.folder.glob(pattern):
                        path.unlink()
                with atomically(manifest) as temporary:
                    temporary.write_bytes(now)
        return manifest.exists()

    def push(self, *names: str) -> None:
        """Copy files of the folder up, one after the other.

        Raises:
            UserError: the object store refuses.
        """
        for name in names if self.uri else ():
            with writing(f"{self.uri}/{name}"):
                self._system.put_file(str(self.folder / name), f"{self._root}/{name}")

    def create(self, name: str, text: str) -> None:
        """Write a file of the store unless one is there already, whoever else tries at the same moment.

        Raises:
            UserError: the object store refuses.
        """
        path = self.folder / name
        if not self.uri:
            with suppress(FileExistsError), open(path, "x", encoding="utf-8") as file:  # asks the server, also on NFS
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            return
        write_text(path, text)
        with writing(f"{self.uri}/{name}"):
            try:
                self._system.put_file(str(path), f"{self._root}/{name}", mode="create")
            except OSError:  # which clients raise for one that is there differs
                if not self.has(name):
                    raise

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
                with atomically(path) as temporary:
                    self._system.get_file(f"{self._root}/{name}", str(temporary))
        return path.exists()

    def _read(self, name: str) -> bytes | None:
        """A file there; None: there is none."""
        with writing(f"{self.uri}/{name}"):
            self._system.invalidate_cache()
            if not self._system.exists(f"{self._root}/{name}"):
                return None
            found: bytes = self._system.cat_file(f"{self._root}/{name}")
            return found

    def put_folder(self, name: str, made: Path) -> None:
        """Make a folder of the store one that was made beside it; files that are the same already are not touched.

        Args:
            name: the folder, which is replaced as a whole where anything differs.
            made: has files only, and may be moved.
        """
        folder = self.folder / name
        files = {path.name: path.read_bytes() for path in made.iterdir()}
        if not folder.is_dir() or files != {path.name: path.read_bytes() for path in folder.iterdir()}:
            shutil.rmtree(folder, ignore_errors=True)
            made.rename(folder)
        self.remove(name, keep=[f"{name}/{file}" for file in files])
        if self.uri:
            self.push(*(f"{name}/{file}" for file in sorted(files) if self._read(f"{name}/{file}") != files[file]))

    def pull_folder(self, name: str) -> None:
        """Copy all files of a folder down."""
        if self.uri:
            for path in self._list(name):
                self.pull(f"{name}/{path.rpartition('/')[2]}")

    def has(self, name: str) -> bool:
        """Whether a file is in the store, wherever that is."""
        if not self.uri:
            return (self.folder / name).exists()
        with writing(f"{self.uri}/{name}"):
            self._system.invalidate_cache()
            return bool(self._system.exists(f"{self._root}/{name}"))

    def names(self, folder: str) -> set[str]:
        """The files of a folder of the store, wherever that is."""
        if self.uri:
            return {path.rpartition("/")[2] for path in self._list(folder)}
        return {path.name for path in (self.folder / folder).glob("*")}

    def remove(self, name: str, keep: Collection[str] = ()) -> None:
        """Delete the files of a folder there, but for some."""
        kept = {f"{self._root}/{file}" for file in keep}
        if self.uri and (files := [file for file in self._list(name) if file not in kept]):
            with writing(f"{self.uri}/{name}"):
                self._system.rm(files)

    def _list(self, name: str) -> list[str]:
        with writing(f"{self.uri}/{name}"):
            self._system.invalidate_cache()
            found: list[str] = self._system.find(f"{self._root}/{name}")
            return found
