"""Signs of life: a rank that hangs is found, named, and ends the run.

    heartbeats/rank-1.json   {"pid": …, "progress": 41, "moved": 3, "doing": "training", "at": "loss.py:88", "waits": …}

A thread of every rank writes this ten times in `QUIET` seconds. Ranks that make no progress for so long look at each
other's: one that is stopped or whose machine hangs writes no more. After `train.hang_timeout`, which leaves time for
what takes long, they also look for one that is stuck: it is the one that does not wait for others in a collective. They
say which it is, and end; then whatever started them ends the rest.

What is done for the first time, when kernels are compiled, has `FIRST_TIMES` as long. A checkpoint takes as long as it
takes: while any rank still writes or reads, none hangs.
"""

import json
import os
import socket
import sys
import threading
from pathlib import Path
from typing import Any

from data_tools.errors import UserError
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
FIRST_TIMES = 3
"""Times `train.hang_timeout` for the first step, the first evaluation and the first checkpoint."""
_MOVED = 2**20
"""Bytes from one beat to the next that only a checkpoint can be."""


class Heart:
    """The heart of one rank: the main thread says `progress`, another writes and watches.

    Args:
        folder: the run's.
        timeout: seconds.
    """

    def __init__(self, folder: Path, world: World, timeout: float) -> None:
        self._ranks = world.ranks_here
        self._files = [heartbeat_path(folder, rank) for rank in self._ranks]
        self._own = heartbeat_path(folder, world.rank)
        self._rank = world.rank
        self._timeout = timeout
        self._quiet = min(timeout, QUIET)
        self._main = threading.get_ident()
        self._progress = 0
        self._bytes = _bytes_moved()
        self._moved = 0
        self._doing = "loading"
        self._done: set[str] = set()
        self._ended = threading.Event()
        self._own.parent.mkdir(exist_ok=True)
        self._write()
        world.barrier()  # nobody takes files of an earlier start for those of this one
        threading.Thread(target=self._live, name="heartbeat", daemon=True).start()

    def progress(self, doing: str) -> None:
        """Something was done; `doing` comes next. Watched from the first call on: loading takes as long as it takes."""
        self._done.add(self._doing)
        self._doing = doing
        self._progress += 1

    def end(self) -> None:
        """No more signs come, and none are missed."""
        self._ended.set()

    def _live(self) -> None:
        # Beats are counted, not seconds: a process that was suspended and goes on did not hang for so long.
        seen, beats, beat = self._progress, 0, self._quiet / _BEATS
        seen_moved: list[int] = []
        while not self._ended.wait(beat):
            try:
                self._write()
            except (OSError, UserError) as error:
                print(f"heartbeat: {error}", flush=True)  # a full disk: saving will say what to do about it
            beats = beats + 1 if self._progress == seen and self._done else 0  # loading takes as long as it takes
            seen = self._progress
            if beats < _BEATS // 2:
                continue
            try:
                moved = [state["moved"] for state in self._states()]
                silent = self._silent() if beats >= _BEATS else []
            except (OSError, ValueError):
                continue  # a shared folder may be between two versions of a file
            if self._doing == "saving" and moved != seen_moved:
                seen_moved, beats = moved, _BEATS // 2
                continue
            patience = self._timeout * (1 if self._doing in self._done else FIRST_TIMES)
            if silent or beats * beat >= patience:
                said = f"error: no progress for {beats * beat:g} s: {self._who_hangs(silent)}"
                print(said, file=sys.stderr, flush=True)
                os._exit(HUNG)  # the main thread may wait for ever

    def _write(self) -> None:
        at, waits = _place_of(self._main)
        moved = _bytes_moved()
        self._moved += moved - self._bytes > _MOVED
        self._bytes = moved
        state = {"pid": os.getpid(), "host": socket.gethostname(), "progress": self._progress, "moved": self._moved}
        write_json(self._own, {**state, "doing": self._doing, "at": at, "waits": waits})

    def _states(self) -> list[dict[str, Any]]:
        return [json.loads(path.read_text(encoding="utf-8")) for path in self._files]

    def _silent(self) -> list[int]:
        now, longest = self._own.stat().st_mtime, _SILENT * self._quiet / _BEATS
        pairs = zip(self._ranks, self._files, strict=True)
        return [rank for rank, path in pairs if now - path.stat().st_mtime > longest]

    def _who_hangs(self, silent: list[int]) -> str:
        states = dict(zip(self._ranks, self._states(), strict=True))
        stuck = [rank for rank, state in states.items() if not state["waits"]]
        what = "gives no sign of life" if silent else "is stuck" if stuck else "waits"
        return "; ".join(
            f"rank {rank} (process {states[rank]['pid']} on {states[rank]['host']}) {what} while "
            f"{states[rank]['doing']}, last seen at {states[rank]['at']}"
            for rank in silent or stuck or states
        )


def longest_wait(timeout: float) -> float:
    """Seconds that a rank waits for the others in one collective: the heartbeat knows more, and comes first."""
    return FIRST_TIMES * timeout + 60


def heartbeat_path(folder: Path, rank: int) -> Path:
    """The file that a rank writes in the run's folder."""
    return folder / FOLDER / f"rank-{rank}.json"


def _bytes_moved() -> int:
    """What this process has read and written so far, from files or a page cache; 0 where the kernel does not count."""
    try:
        counters = Path("/proc/self/io").read_text(encoding="ascii")
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in counters.splitlines() if line.startswith(("rchar", "wchar")))


_WAITING = ("torch/distributed/", "torch/cuda/", "deepspeed/utils/timer.py", "sft/metrics.py", "is_invalid_grad_norm")
"""Files and functions in which a rank waits for others: for a collective, or for its GPU, which has one to finish."""


def _place_of(thread: int) -> tuple[str, bool]:
    """Where a thread is, and whether it waits for other ranks there."""
    frame = sys._current_frames().get(thread)
    at, waits = "", False
    while frame is not None:
        file, function = frame.f_code.co_filename, frame.f_code.co_name
        at = at or f"{Path(file).name}:{frame.f_lineno}"
        waits = waits or function in _WAITING or any(each in file for each in _WAITING)
        frame = frame.f_back
    return at, waits
