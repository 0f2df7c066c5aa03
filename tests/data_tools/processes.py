"""Drivers of preparations in processes of their own, for tests that kill them.

They are forked off a server that has imported everything and run nothing, so each is at work at once. Forked off the
tests themselves, where libraries have threads of their own by then, they would wait for those threads for ever.
"""

import multiprocessing
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.context import ForkServerProcess
from typing import Any

from data_tools.records import UnitRecord

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["data_tools.share", "tests.data_tools.processes"])


def start(target: Callable[..., Any], *arguments: Any) -> ForkServerProcess:
    """A process that calls `target`."""
    process = SERVER.Process(target=target, args=arguments)
    process.start()
    return process


@dataclass
class KillAfter:
    """Kills its own process when so many units are finished."""

    units: int
    made: list[int] = field(default_factory=list)

    def __call__(self, record: UnitRecord, rows: int) -> None:
        self.made.append(record.unit)
        if len(self.made) == self.units:
            os.kill(os.getpid(), signal.SIGKILL)


@dataclass
class Wait:
    """Says that a unit is finished, and goes on when it is told to."""

    ready: Any = field(default_factory=SERVER.Event)
    go_on: Any = field(default_factory=SERVER.Event)

    def __call__(self, record: UnitRecord, rows: int) -> None:
        self.ready.set()
        self.go_on.wait()
