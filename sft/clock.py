"""Where the time of steps goes."""

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Clock:
    """Seconds in each part of a step, added up until they are read."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count what happens inside as this part."""
        started = time.perf_counter()
        yield
        self._seconds[name] = self._seconds.get(name, 0.0) + time.perf_counter() - started

    def read(self) -> dict[str, float]:
        """Seconds by part since the last reading."""
        seconds, self._seconds = self._seconds, {}
        return seconds
