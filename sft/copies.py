"""Copies of checkpoints in another place, which outlive this machine and its disks.

    checkpoint.copy_to: s3://bucket/runs   →   s3://bucket/runs/NAME/   as the run's folder, and of that
                                                   run.yaml  metrics.jsonl
                                                   checkpoints/step-00000200/…, commit.json last

A thread of the main rank makes them while training goes on, one at a time; one that waits gives way to a newer one. A
copy has its commit record when it has all else, and loses it before all else: half a copy is none.

With `checkpoint.node_local` every node copies its part, and a seal when it is there: checkpoints/step-00000200/parts/….
The main rank waits for all seals before it puts the commit record.
"""

import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Collection
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path, PurePosixPath
from typing import Any

from data_tools.errors import UserError
from data_tools.store import atomically
from sft.config_watch import CheckpointConfig
from sft.digests import COMMIT, file_names, read_by, what_is_wrong, writer
from sft.elsewhere import Elsewhere
from sft.progress import best_checkpoint, best_of, committed_checkpoints
from sft.record import METRICS
from sft.world import World

SETTING = "checkpoint.copy_to"
CHECKPOINTS = "checkpoints"
RUN_FILE = "run.yaml"
_ALONG = (RUN_FILE, METRICS)
"""What of a run's folder is copied beside."""
_FILE = re.compile(rf"{CHECKPOINTS}/(step-\d+)/(.+)")
_PARTS = 1800.0
"""Seconds that the main rank waits for the parts of other nodes."""
_STREAMS = 4
"""Files that come down at a time."""


class Copies:
    """The copies of a run's checkpoints; one process of each folder of a run has this.

    Args:
        run: the run's folder.
        settings: `copy_to` must be set.
        world: this process among the ranks of the run; None: it is none of them.
        keepers: of each folder of the run, the rank that copies.

    Raises:
        UserError: `copy_to` names a kind of object store whose library is not installed.
    """

    def __init__(
        self, run: Path, settings: CheckpointConfig, world: World | None = None, keepers: tuple[int, ...] = (0,)
    ) -> None:
        self._run = run.absolute()
        self._settings = settings
        self._world = world
        self._keepers = keepers
        self._store = Elsewhere(f"{str(settings.copy_to).rstrip('/')}/{self._run.name}", SETTING)
        self._pool = ThreadPoolExecutor(1, "copies")
        self._jobs: dict[Path, Future[None]] = {}
        self._last: Future[None] | None = None
        self._done: set[Path] = set()
        """Checkpoints that were copied."""
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
        """Copy a committed checkpoint as soon as may be; those that wait for it, but for the best, no longer matter.

        The best is tried again as well where it was not copied.
        """
        best = best_checkpoint(checkpoint.parent) if self._settings.keep_best else None
        for path, job in self._jobs.items():
            if path != best:
                job.cancel()
        if best is not None and best not in (checkpoint, *self._done, *self.busy()):
            self._submit(self._copy, best).add_done_callback(self._say)
        self._submit(self._copy, checkpoint).add_done_callback(self._say)

    def bring(self, name: str, folder: Path, ranks: tuple[int, ...] | None = None) -> None:
        """Fetch a copy into the folder of checkpoints; it is complete there, but not yet compared with its record.

        Args:
            ranks: fetch what these ranks read, and compare it; None: all of it.
        """
        self._submit(lambda path: self._fetch(path, ranks), folder / name)

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
        record = (checkpoint / COMMIT).read_bytes()
        if len(self._keepers) == 1:
            self._store.remove(there, first=COMMIT)  # of a course that broke off, or of one that was left
            names = file_names(checkpoint)
        else:
            assert self._world is not None, "only ranks copy parts"
            names = [name for name in file_names(checkpoint) if writer(name) in self._world.ranks_here]
            if self._world.is_main:
                self._store.remove_file(f"{there}/{COMMIT}")
        for name in names:
            self._store.put(checkpoint / name, f"{there}/{name}")
        if self._world is not None and not self._world.is_main:
            self._store.put(checkpoint / COMMIT, f"{there}/{_seal(self._world.rank, record)}")
            self._done.add(checkpoint)
            return
        for name in _ALONG:
            if (self._run / name).exists():
                self._store.put(self._run / name, name)
        self._wait_for_parts(checkpoint, {f"{there}/{_seal(rank, record)}" for rank in self._keepers[1:]})
        self._store.put(checkpoint / COMMIT, f"{there}/{COMMIT}")
        self._done.add(checkpoint)
        try:
            here = committed_checkpoints(checkpoint.parent)
            # Of later ones other nodes may have put their parts.
            self._delete_old(until=checkpoint.name if len(self._keepers) > 1 else here[-1].name)
        except UserError as error:  # some stores let nobody delete
            print(f"older copies were not deleted: {error}", flush=True)
        self.longest = max(self.longest, time.monotonic() - started)

    def _wait_for_parts(self, checkpoint: Path, seals: set[str]) -> None:
        """Wait until other nodes have copied what their ranks wrote.

        Raises:
            UserError: they do not, or a newer checkpoint came meanwhile, for which they may have left this one out.
        """
        deadline = time.monotonic() + _PARTS
        while missing := seals - set(self._store.names()) if seals else set():
            if any(path != checkpoint and not job.done() for path, job in self._jobs.items()):
                raise UserError(f"{checkpoint.name} gave way to a newer one")
            if time.monotonic() > deadline:
                raise UserError(f"other nodes did not copy their parts of {checkpoint.name}: {', '.join(missing)}")
            time.sleep(1.0)

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

    def _fetch(self, path: Path, ranks: tuple[int, ...] | None) -> None:
        """A copy → `path`, which has its name when it has all files; those that are there already are not fetched."""
        there = f"{CHECKPOINTS}/{path.name}"
        record = self._store.read(f"{there}/{COMMIT}")
        listed = self._files_of(record, f"{self.location}/{there}")
        files = {name: facts for name, facts in listed.items() if ranks is None or read_by(name, ranks)}
        _check_room(path.parent, sum(facts["bytes"] for facts in files.values()), f"{self.location}/{there}")
        partial = path.with_name(path.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        for name, facts in files.items() if path.exists() else ():
            if what_is_wrong(path, name, facts) is None:
                (partial / name).parent.mkdir(parents=True, exist_ok=True)
                os.link(path / name, partial / name)
        wanted = [name for name in files if not (partial / name).exists()]
        with ThreadPoolExecutor(_STREAMS) as pool:
            list(pool.map(lambda name: self._store.get(f"{there}/{name}", partial / name), wanted))
        if self._settings.node_local and (wrong := self._damage(partial, {name: files[name] for name in wanted})):
            raise UserError(f"the copy {self.location}/{there} is damaged: {wrong}")
        (partial / COMMIT).write_bytes(record)
        os.utime(partial / COMMIT, (0, 0))  # it was not committed now: what a start gained is told by that
        shutil.rmtree(path, ignore_errors=True)
        os.rename(partial, path)
        if METRICS in self._store.names():  # what is here ends before
            with atomically(self._run / METRICS) as temporary:
                self._store.get(METRICS, temporary)

    def _damage(self, folder: Path, files: dict[str, dict[str, Any]]) -> str | None:
        return next((wrong for name, facts in files.items() if (wrong := what_is_wrong(folder, name, facts))), None)

    def _files_of(self, record: bytes, where: str) -> dict[str, dict[str, Any]]:
        """Bytes and digests of the files that a commit record lists, by name.

        Raises:
            UserError: it is no such record, or names files elsewhere on this machine.
        """
        try:
            files = {
                str(name): {"bytes": int(facts["bytes"]), "blake3": str(facts["blake3"])}
                for name, facts in json.loads(record)["files"].items()
            }
        except (ValueError, LookupError, TypeError, AttributeError):
            raise UserError(f"{where}/{COMMIT} is not what was written") from None
        if any(PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts for name in files):
            raise UserError(f"{where}/{COMMIT} names files outside the checkpoint")
        return files


def _seal(rank: int, record: bytes) -> str:
    """The file that says that the node of this rank has copied its part of the checkpoint with this commit record."""
    return f"parts/{rank:05d}-{hashlib.sha256(record).hexdigest()[:16]}"


def _check_room(folder: Path, needed: int, what: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(f"{folder} has room for {free / 1e9:,.2f} GB, and {what} has {needed / 1e9:,.2f} GB")
