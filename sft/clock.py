"""Where the time of steps goes."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_Timed = tuple[str, torch.cuda.Event, torch.cuda.Event]
"""A part, where it began and where it ended."""


class Clock:
    """Seconds of the parts of a step.

    A GPU works on after the host has gone on, so its parts are timed by events in its stream, which nobody waits for.
    They are kept for one step only, however long it is until they are read; seconds of the host are added up.
    """

    def __init__(self) -> None:
        self._on_gpu = torch.cuda.is_available()
        self._reset()

    def _reset(self) -> None:
        self._steps = 0
        self._seconds: dict[str, float] = {}
        self._events: list[_Timed] = []
        self._events_of_last: list[_Timed] = []

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count what happens inside as this part."""
        started, event = time.perf_counter(), self._event()
        yield
        self._seconds[name] = self._seconds.get(name, 0.0) + time.perf_counter() - started
        if event is not None:
            end = self._event()
            assert end is not None
            self._events.append((name, event, end))

    def _event(self) -> torch.cuda.Event | None:
        if not self._on_gpu:
            return None
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def step_is_done(self) -> None:
        """What is timed next belongs to another step."""
        self._steps += 1
        self._events_of_last, self._events = self._events, []

    def read(self) -> tuple[float, dict[str, float]]:
        """Seconds since the last reading in all parts, and of each part in one step: the last one's on a GPU, which
        must have ended, and the mean elsewhere.
        """
        total = sum(self._seconds.values())
        parts = {name: seconds / max(1, self._steps) for name, seconds in self._seconds.items()}
        if self._on_gpu:
            parts = dict.fromkeys((name for name, _, _ in self._events_of_last), 0.0)
            for name, start, end in self._events_of_last:
                parts[name] += start.elapsed_time(end) / 1000
        self._reset()
        return total, parts
