"""The folder of a store is its own, and one preparation is at it at a time."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from data_tools.errors import UserError
from data_tools.mirror import REMOTE
from data_tools.store import MANIFEST

LOCK = ".lock"


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
    with open(store / LOCK, "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"{store} is being prepared by another process; wait for it, or choose another store"
            ) from None
        yield
