"""Signs of life: a rank that hangs is found, named, and ends the run.

    heartbeats/rank-1.json    {"pid": …, "host": …, "progress": 41, "doing": "training", "at": "loss.py:88", "waits": …}

A thread of every rank writes this ten times in `QUIET` seconds. Ranks that make no progress for so long look at each
other's: one that is stopped or whose machine hangs writes no more. After `train.hang_timeout`, which leaves time for
what takes long, they also look for one that is stuck: it is the one that does not wait for others in a collective. They
say which it is, and end; then whatever started them ends the rest.
"""

import json
import os
import socket
import sys
import threading
from pathlib import Path

from data_tools.store import write_json
from sft.exits import HUNG
from sft.world import World

FOLDER = "heartbeats"
QUIET = 120.0
"""Seconds after which a rank that gives no sign of life is missed; a shared folder may show what is a minute old."""
_BEATS = 10
"""In that time."""
_SILENT = 8
"""Beats that a living rank never leaves out."""


class Heart:
    """The heart of one rank: the main thread says `progress`, another writes and watches.

    Args:
        folder: the run's.
        timeout: seconds.
    """

    def __init__(self, folder: Path, world: World, timeout: float) -> None:
        self._files = [heartbeat_path(folder, rank) for rank in range(world.size)]
        self._own = self._files[world.rank]
        self._rank = world.rank
        self._timeout = timeout
        self._quiet = min(timeout, QUIET)
        self._main = threading.get_ident()
        self._progress = 0
        self._doing = "loading"
        self._watched = False
        self._ended = threading.Event()
        self._own.parent.mkdir(exist_ok=True)
        self._write()
        world.barrier()  # nobody takes files of an earlier start for those of this one
        threading.Thread(target=self._live, name="heartbeat", daemon=True).start()

    def progress(self, doing: str) -> None:
        """Something was done; `doing` comes next. Watched from the first call on: loading takes as long as it takes."""
        self._progress += 1
        self._doing = doing
        self._watched = True

    def end(self) -> None:
        """No more signs come, and none are missed."""
        self._ended.set()

    def _live(self) -> None:
        # Beats are counted, not seconds: a process that was suspended and goes on did not hang for so long.
        seen, beats, beat = self._progress, 0, self._quiet / _BEATS
        while not self._ended.wait(beat):
            try:
                self._write()
            except OSError as error:
                print(f"heartbeat: {error}", flush=True)  # a full disk: saving will say what to do about it
            beats = beats + 1 if self._progress == seen and self._watched else 0
            seen = self._progress
            silent = self._silent() if beats >= _BEATS else []
            if silent or beats * beat >= self._timeout:
                said = f"error: no progress for {beats * beat:g} s: {self._who_hangs(silent)}"
                print(said, file=sys.stderr, flush=True)
                os._exit(HUNG)  # the main thread may wait for ever

    def _write(self) -> None:
        at, waits = _place_of(self._main)
        state = {"pid": os.getpid(), "host": socket.gethostname(), "progress": self._progress, "doing": self._doing}
        write_json(self._own, {**state, "at": at, "waits": waits})

    def _silent(self) -> list[int]:
        now, longest = self._own.stat().st_mtime, _SILENT * self._quiet / _BEATS
        return [rank for rank, path in enumerate(self._files) if now - path.stat().st_mtime > longest]

    def _who_hangs(self, silent: list[int]) -> str:
        states = [json.loads(path.read_text(encoding="utf-8")) for path in self._files]
        stuck = [rank for rank, state in enumerate(states) if not state["waits"]]
        what = "gives no sign of life" if silent else "is stuck"
        return "; ".join(
            f"rank {rank} (process {states[rank]['pid']} on {states[rank]['host']}) {what} while "
            f"{states[rank]['doing']}, last seen at {states[rank]['at']}"
            for rank in silent or stuck or range(len(states))
        )


def heartbeat_path(folder: Path, rank: int) -> Path:
    """The file that a rank writes in the run's folder."""
    return folder / FOLDER / f"rank-{rank}.json"


def _place_of(thread: int) -> tuple[str, bool]:
    """Where a thread is, and whether it waits for other ranks there."""
    frame = sys._current_frames().get(thread)
    at, waits = "", False
    while frame is not None:
        name = frame.f_code.co_filename
        at = at or f"{Path(name).name}:{frame.f_lineno}"
        waits = waits or "torch/distributed/" in name
        frame = frame.f_back
    return at, waits
