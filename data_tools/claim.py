"""The folder of a store is its own: one preparation is at it at a time, or several shares of one.

The locks are of the file system (`flock`), which all nodes that share the folder have to see. An object store has none:
there they only hold back who shares the copy of this machine.
"""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from data_tools.errors import UserError
from data_tools.mirror import REMOTE
from data_tools.store import MANIFEST

LOCK = ".lock"
_STARTING = "units/.starting"
"""Held by the one share that looks whether it agrees with the others."""


def claim(store: Path) -> None:
    """Make the folder; what is there already must be a store, finished or not: leftovers in it will be deleted."""
    try:
        store.mkdir(parents=True, exist_ok=True)
        if not {LOCK, REMOTE, MANIFEST} & (found := {path.name for path in store.iterdir()}) and found:
            raise UserError(f"data.store: {store} is not empty and no token store; choose a new folder")
    except OSError as error:
        raise UserError(f"data.store: cannot use {store}: {error.strerror}; choose another folder") from None


@contextmanager
def locked(store: Path) -> Iterator[None]:
    """One preparation of a store at a time."""
    busy = f"{store} is being prepared by another process; wait for it, or choose another store"
    with _holding(store / LOCK, fcntl.LOCK_EX | fcntl.LOCK_NB, busy):
        yield


@contextmanager
def shared(store: Path) -> Iterator[None]:
    """Any number of shares of a preparation at a time, and nobody who prepares all of it."""
    busy = f"{store} is being prepared or finished by a process without --share; wait for it"
    with _holding(store / LOCK, fcntl.LOCK_SH | fcntl.LOCK_NB, busy):
        yield


@contextmanager
def starting(store: Path) -> Iterator[None]:
    """Of the shares that begin at the same moment, one after the other."""
    (store / _STARTING).parent.mkdir(exist_ok=True)
    with _holding(store / _STARTING, fcntl.LOCK_EX, ""):
        yield


@contextmanager
def _holding(path: Path, operation: int, busy: str) -> Iterator[None]:
    try:
        lock = open(path, "a+")  # noqa: SIM115 -- what happens inside says itself what went wrong; NFS: both ways
        fcntl.flock(lock, operation)
    except BlockingIOError:
        raise UserError(busy) from None
    except OSError as error:
        raise UserError(
            f"data.store: cannot lock {path}: {error.strerror}; choose a folder on a file system with flock"
        ) from None
    with lock:
        yield
