"""How long steps and checkpoints of a run take at most: whoever has to ask it to stop in time wants to know.

    timings.json    {"longest_step": 12.5, "longest_save": 48.0, "longest_copy": 0.0}

In seconds, over all starts of the run.
"""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, get_args

from data_tools.store import write_json

TIMINGS = "timings.json"

What = Literal["longest_step", "longest_save", "longest_copy"]


class Timings:
    """The longest step, save and copy of a checkpoint, as one rank sees them.

    Args:
        folder: the run's, with what earlier starts measured.
        writes: whether this is the main rank; on the others nothing is written.
    """

    def __init__(self, folder: Path, writes: bool) -> None:
        self._path = folder / TIMINGS
        self._writes = writes
        before = json.loads(self._path.read_text(encoding="utf-8")) if writes and self._path.exists() else {}
        self._longest = {name: float(before.get(name, 0.0)) for name in get_args(What)}
        self._first: float | None = None
        """Of this start. Programs are compiled in it, so it only counts where there is no other."""

    @contextmanager
    def step(self) -> Iterator[None]:
        """What happens inside is one step."""
        started = time.monotonic()
        yield
        seconds = time.monotonic() - started
        if self._first is None:
            self._first = seconds
        else:
            self._note("longest_step", seconds)

    @contextmanager
    def save(self) -> Iterator[None]:
        """What happens inside is one save."""
        started = time.monotonic()
        yield
        self._note("longest_save", time.monotonic() - started)

    def copied(self, seconds: float) -> None:
        """A copy of a checkpoint, for which a run waits before it ends, took so long."""
        self._note("longest_copy", seconds)

    def write(self) -> None:
        """Keep what was measured."""
        if self._writes:
            step = self._longest["longest_step"] or self._first or 0.0
            write_json(self._path, self._longest | {"longest_step": step})

    def _note(self, what: What, seconds: float) -> None:
        self._longest[what] = max(self._longest[what], seconds)
