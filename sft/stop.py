"""Stopping in time: a signal, the stop file or the deadline, seen by any rank, stops all of them at the same place.

    rank 0  step 5 | asked? ─┐           ┌─ yes │ checkpoint │ exit 85
    rank 1  step 5 | asked? ─┴─ maximum ─┴─ yes │ checkpoint │ exit 85

Whoever takes the machine away (a scheduler, a preemption, a person) says so some seconds or minutes before.
"""

import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sft.exits import SIGNALS, STOP_FILE
from sft.world import World, deadline

_REASONS = ("", "a signal", "the stop file", "the deadline")


class StopAsked(Exception):
    """All ranks agreed to stop: what is being done is abandoned."""


class Stop:
    """Whether the run was asked to stop.

    Args:
        folder: the run's.
        signalled: says whether this process got one of `SIGNALS` (`listen`).

    Raises:
        UserError: the deadline is no time.
    """

    def __init__(self, folder: Path, world: World, signalled: Callable[[], bool]) -> None:
        self._file = folder / STOP_FILE
        self._world = world
        self._signalled = signalled
        self._deadline = deadline()
        self.reason = ""
        """Why all ranks agreed to stop; empty as long as they have not."""

    def ask(self) -> bool:
        """Agree with all ranks, which all call it at the same place; once they stop, they stay with it."""
        if not self.reason:
            self.reason = _REASONS[self._world.max(self._own())]
        return bool(self.reason)

    def abandon_if_asked(self) -> None:
        """Between the parts of what can be abandoned and made again; all ranks call it.

        Raises:
            StopAsked: on all ranks.
        """
        if self.ask():
            raise StopAsked

    def _own(self) -> int:
        """What this rank knows, as an index of `_REASONS`."""
        if self._signalled():
            return 1
        if self._world.is_main and self._file.exists():
            return 2
        return 3 if time.time() >= self._deadline else 0


def stop_listening() -> None:
    """Nothing is left to be saved: `SIGNALS`, by which some schedulers end all ranks when one has ended, change nothing
    about how this process ends.
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)  # stays, also while Python shuts down


def listen() -> Callable[[], bool]:
    """Note `SIGNALS` from now on, also those that came while they were blocked; returns what says whether one came."""
    received: list[int] = []

    def note(number: int, _: Any) -> None:
        received.append(number)

    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as SIGHUP below nohup
            signal.signal(number, note)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    return lambda: bool(received)
