"""Copies of checkpoints in another place, which outlive this machine and its disks.

    checkpoint.copy_to: s3://bucket/runs   →   s3://bucket/runs/NAME/   as the run's folder, and of that
                                                   run.yaml  metrics.jsonl
                                                   checkpoints/step-00000200/…, commit.json last

A thread of the main rank makes them while training goes on, one at a time; one that waits gives way to a newer one. A
copy has its commit record when it has all else, and loses it before all else: half a copy is none.
"""

import json
import os
import re
import shutil
import time
from collections.abc import Callable, Collection
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path, PurePosixPath

from data_tools.errors import UserError
from data_tools.store import atomically
from sft.config_watch import CheckpointConfig
from sft.digests import COMMIT, file_names
from sft.elsewhere import Elsewhere
from sft.progress import best_checkpoint, best_of, committed_checkpoints
from sft.record import METRICS

SETTING = "checkpoint.copy_to"
CHECKPOINTS = "checkpoints"
RUN_FILE = "run.yaml"
_ALONG = (RUN_FILE, METRICS)
"""What of a run's folder is copied beside."""
_FILE = re.compile(rf"{CHECKPOINTS}/(step-\d+)/(.+)")
_STREAMS = 4
"""Files that come down at a time."""


class Copies:
    """The copies of a run's checkpoints; one process of a run has this.

    Args:
        run: the run's folder.
        settings: `copy_to` must be set.

    Raises:
        UserError: `copy_to` names a kind of object store whose library is not installed.
    """

    def __init__(self, run: Path, settings: CheckpointConfig) -> None:
        self._run = run.absolute()
        self._settings = settings
        self._store = Elsewhere(f"{str(settings.copy_to).rstrip('/')}/{self._run.name}", SETTING)
        self._pool = ThreadPoolExecutor(1, "copies")
        self._jobs: dict[Path, Future[None]] = {}
        self._last: Future[None] | None = None
        self.longest = 0.0
        """Seconds that one copy took at most."""

    @property
    def location(self) -> str:
        """The folder that has them, as a URI or path."""
        return self._store.location

    def names(self) -> list[str]:
        """The checkpoints that are copied whole, oldest first.

        Raises:
            UserError: the place cannot be reached.
        """
        return sorted(name for name, files in self._listing().items() if COMMIT in files)

    def best(self) -> str | None:
        """The copy that has the lowest validation loss."""
        return self._best(self.names())

    def _best(self, names: list[str]) -> str | None:
        return best_of({name: self._store.read(f"{CHECKPOINTS}/{name}/{COMMIT}") for name in names})

    def begin(self) -> None:
        """Put what the run is there, before it begins.

        Raises:
            UserError: nothing can be put there.
        """
        self._store.put(self._run / RUN_FILE, RUN_FILE)

    def run_file(self) -> bytes:
        """The `run.yaml` of the run that the copies are of."""
        return self._store.read(RUN_FILE)

    def offer(self, checkpoint: Path) -> None:
        """Copy a committed checkpoint as soon as may be; those that wait for it, but for the best, no longer matter."""
        best = best_checkpoint(checkpoint.parent) if self._settings.keep_best else None
        for path, job in self._jobs.items():
            if path != best:
                job.cancel()
        self._submit(self._copy, checkpoint).add_done_callback(self._say)

    def bring(self, name: str, folder: Path) -> None:
        """Fetch a copy into the folder of checkpoints; it is complete there, but not yet compared with its record."""
        self._submit(self._fetch, folder / name)

    def busy(self) -> set[Path]:
        """The checkpoints that are being copied or fetched, or are to be."""
        return {path for path, job in self._jobs.items() if not job.done()}

    def wait(self, seconds: float) -> bool:
        """Wait until nothing is being copied or fetched, but not longer than this; whether something still is."""
        return bool(wait(self._jobs.values(), seconds).not_done)

    @property
    def trouble(self) -> str:
        """Why what was asked for last was not done; empty: it was, or is being done."""
        if self._last is None or not self._last.done() or (error := self._last.exception()) is None:
            return ""
        return str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {' '.join(str(error).split())}"

    def _submit(self, work: Callable[[Path], None], path: Path) -> Future[None]:
        self._last = self._pool.submit(work, path)
        self._jobs = {path: job for path, job in self._jobs.items() if not job.done()} | {path: self._last}
        return self._last

    def _say(self, job: Future[None]) -> None:
        if not job.cancelled() and (error := job.exception()) is not None:
            print(f"a checkpoint was not copied: {error}; it is tried again with the next one", flush=True)

    def _listing(self) -> dict[str, list[str]]:
        """By checkpoint the names of its files there."""
        found: dict[str, list[str]] = {}
        for name in self._store.names():
            if match := _FILE.fullmatch(name):
                found.setdefault(match[1], []).append(match[2])
        return found

    def _copy(self, checkpoint: Path) -> None:
        started = time.monotonic()
        there = f"{CHECKPOINTS}/{checkpoint.name}"
        self._store.remove(there, first=COMMIT)  # of a course that broke off, or of one that was left
        for name in _ALONG:
            if (self._run / name).exists():
                self._store.put(self._run / name, name)
        for name in (*file_names(checkpoint), COMMIT):
            self._store.put(checkpoint / name, f"{there}/{name}")
        try:
            self._delete_old(until=committed_checkpoints(checkpoint.parent)[-1].name)
        except UserError as error:  # some stores let nobody delete
            print(f"older copies were not deleted: {error}", flush=True)
        self.longest = max(self.longest, time.monotonic() - started)

    def _delete_old(self, until: str) -> None:
        """Delete copies that the settings do not keep, and what is left of broken ones.

        Args:
            until: the newest checkpoint here. Copies of later ones stay until training has come to their step again.
        """
        listing = {name: files for name, files in self._listing().items() if name <= until}
        whole = sorted(name for name, files in listing.items() if COMMIT in files)
        kept: Collection[str | None] = set(whole[-self._settings.keep_last :])
        if self._settings.keep_best:
            kept = {*kept, self._best(whole)}
        for name in listing.keys() - kept:
            self._store.remove(f"{CHECKPOINTS}/{name}", first=COMMIT)

    def _fetch(self, path: Path) -> None:
        """A copy → `path`, which has its name when it has all files."""
        there = f"{CHECKPOINTS}/{path.name}"
        record = self._store.read(f"{there}/{COMMIT}")
        files = self._files_of(record, f"{self.location}/{there}")
        _check_room(path.parent, sum(files.values()), f"{self.location}/{there}")
        partial = path.with_name(path.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        with ThreadPoolExecutor(_STREAMS) as pool:
            list(pool.map(lambda name: self._store.get(f"{there}/{name}", partial / name), files))
        (partial / COMMIT).write_bytes(record)
        os.rename(partial, path)
        if METRICS in self._store.names():  # what is here ends before
            with atomically(self._run / METRICS) as temporary:
                self._store.get(METRICS, temporary)

    def _files_of(self, record: bytes, where: str) -> dict[str, int]:
        """Names and bytes of the files that a commit record lists.

        Raises:
            UserError: it is no such record, or names files elsewhere on this machine.
        """
        try:
            files = {str(name): int(facts["bytes"]) for name, facts in json.loads(record)["files"].items()}
        except (ValueError, LookupError, TypeError, AttributeError):
            raise UserError(f"{where}/{COMMIT} is not what was written") from None
        if any(PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts for name in files):
            raise UserError(f"{where}/{COMMIT} names files outside the checkpoint")
        return files


def _check_room(folder: Path, needed: int, what: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(f"{folder} has room for {free / 1e9:,.2f} GB, and {what} has {needed / 1e9:,.2f} GB")
