"""How far `prepare` is: a bar on a terminal, a line every half minute in a log."""

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

from data_tools.prepare import OnStart, OnUnit
from data_tools.records import UnitRecord
from data_tools.store import write_json
from data_tools.unfinished import Leftovers

_SECONDS_BETWEEN_LINES = 30
_WINDOW = 60


@dataclass
class Tokenized:
    """What is done so far, and how fast it goes.

    The rate looks back a minute, or over half of the time where units take longer. Units that an earlier preparation
    finished are done, but say nothing about the rate.
    """

    started: float
    """When the first unit was begun, in seconds of any clock."""
    kept: int = 0
    """Rows of units that were finished before."""
    rows: int = 0
    """Rows that were made now."""
    tokens: int = 0
    total: int = 0
    """Rows of all units; 0: not known yet."""
    _past: deque[tuple[float, int, int]] = field(init=False)

    def __post_init__(self) -> None:
        self._past = deque([(self.started, 0, 0)])

    @property
    def done(self) -> int:
        """Rows of finished units, now or before."""
        return self.kept + self.rows

    def keep(self, rows: int, total: int) -> None:
        """A unit was finished before."""
        self.kept, self.total = self.kept + rows, total

    def add(self, now: float, rows: int, tokens: int, total: int) -> None:
        """A unit was finished."""
        self.rows, self.tokens, self.total = self.rows + rows, self.tokens + tokens, total
        self._past.append((now, self.rows, self.tokens))
        since = now - max(_WINDOW, (now - self.started) / 2)
        while self._past[1][0] <= since:
            self._past.popleft()

    @property
    def rates(self) -> tuple[float, float]:
        """Rows and tokens a second."""
        (before, rows, tokens), (now, _, _) = self._past[0], self._past[-1]
        seconds = max(now - before, 1e-3)
        return (self.rows - rows) / seconds, (self.tokens - tokens) / seconds

    @property
    def seconds_left(self) -> float | None:
        """Until all is done; None: nobody knows."""
        rows, _ = self.rates
        left = self.total - self.done
        return left / rows if rows else None if left else 0.0


def _speed(done: Tokenized) -> str:
    """`3,210 rows/s  2.8 M tokens/s  ETA 0:12`."""
    rows, tokens = done.rates
    eta = "unknown" if done.seconds_left is None else str(timedelta(seconds=round(done.seconds_left)))
    return f"{rows:,.0f} rows/s  {_short(tokens)} tokens/s  ETA {eta.removeprefix('0:').removeprefix('0')}"


def line(done: Tokenized) -> str:
    """`tokenizing 12,288 / 50,000 rows  3,210 rows/s  2.8 M tokens/s  ETA 0:12`."""
    return f"tokenizing {done.done:,} / {done.total:,} rows  {_speed(done)}"


def _short(number: float) -> str:
    for size, letter in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if number >= size:
            return f"{number / size:.1f}{letter}"
    return f"{number:.0f}"


PREPARING = "prepare.json"
"""In the run's folder, for those who look from elsewhere (`shardtune status`)."""
_SECONDS_BETWEEN_NOTES = 5


@contextmanager
def tokenizing(console: Console, folder: Path, share: int | None = None) -> Iterator[tuple[OnStart, OnUnit]]:
    """Yield what `prepare` calls when it starts, and with each finished unit.

    Args:
        folder: the run's, in which it is noted how far it is.
        share: the number of the share that is made; None: all is.
    """
    noted = 0.0
    done, finished_before = Tokenized(time.monotonic()), set[int]()
    show = _bar if console.is_terminal else _lines
    with show(console) as update:

        def on_start(left: Leftovers) -> None:
            nonlocal done, finished_before
            if left.told:
                console.print(left.told, style="yellow", markup=False, highlight=False)
            done, finished_before = Tokenized(time.monotonic()), left.kept

        def on_unit(record: UnitRecord, total: int) -> None:
            nonlocal noted
            if record.unit in finished_before:
                done.keep(record.rows, total)
            else:
                done.add(time.monotonic(), record.rows, record.tokens, total)
            update(done)
            if time.monotonic() - noted >= _SECONDS_BETWEEN_NOTES or done.done == total:
                noted = time.monotonic()
                _note(done, folder / (PREPARING if share is None else f"prepare-{share}.json"))

        yield on_start, on_unit


def _note(done: Tokenized, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    rows, tokens = done.rates
    speed = {"rows_per_second": round(rows), "tokens_per_second": round(tokens), "seconds_left": done.seconds_left}
    write_json(file, {"rows": done.done, "total": done.total, **speed})


@contextmanager
def _bar(console: Console) -> Iterator[Callable[[Tokenized], None]]:
    columns = (SpinnerColumn(), BarColumn(), TextColumn("{task.description}", markup=False))
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("reading sources and tokenizer", total=None)
        yield lambda done: progress.update(task, total=done.total, completed=done.done, description=line(done))


@contextmanager
def _lines(console: Console) -> Iterator[Callable[[Tokenized], None]]:
    last = time.monotonic()

    def update(done: Tokenized) -> None:
        nonlocal last
        if time.monotonic() - last >= _SECONDS_BETWEEN_LINES:
            last = time.monotonic()
            console.print(line(done), highlight=False)

    yield update
