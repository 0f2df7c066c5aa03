"""What a training run does, as it happens."""

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

from launcher.run_folder import read_status
from sft.record import METRICS


@contextmanager
def following(folder: Path, ranks: int, console: Console) -> Iterator[Callable[[], None]]:
    """A bar for a run, or lines in a log; what this yields moves it to where the run's folder says training is."""
    metrics = NewLines(folder / METRICS)
    newest: dict[str, Any] = {}
    if not console.is_terminal:
        console.print(f"starting {ranks} ranks, each with a log of its own: {folder}/logs/rank-0.log", highlight=False)
        yield _lines(folder, metrics, console)
        return
    with _progress(console, "steps") as progress:
        task = progress.add_task(f"starting {ranks} ranks", total=None)

        def look() -> None:
            status = read_status(folder)
            if not status or status["phase"] == "loading":
                return
            for line in metrics.read():
                if "loss" in line:
                    newest.update(line)
            text = str(status["phase"])
            if newest:
                text += f"  loss {newest['loss']:.3f}  {newest['tokens_per_second']:,.0f} tokens/s"
            done = newest.get("step", status["step"])
            progress.update(task, total=status["steps"], completed=done, description=text)

        yield look


_SECONDS_BETWEEN_LINES = 10.0


def _lines(folder: Path, metrics: "NewLines", console: Console) -> Callable[[], None]:
    """Prints each evaluation, and now and then a step."""
    last = -_SECONDS_BETWEEN_LINES

    def look() -> None:
        nonlocal last
        for line in metrics.read():
            where = f"step {line['step']:,} / {read_status(folder).get('steps', 0):,}"
            if "validation_loss" in line:
                console.print(f"{where}  validation loss {line['validation_loss']:.3f}", highlight=False)
            elif "loss" in line and time.monotonic() - last >= _SECONDS_BETWEEN_LINES:
                last = time.monotonic()
                speed = f"{line['tokens_per_second']:,.0f} tokens/s"
                console.print(f"{where}  loss {line['loss']:.3f}  {speed}", highlight=False)

    return look


class NewLines:
    """The lines that came to a file of JSON lines since they were last read.

    A file that was replaced is read from its start: a resumed run forgets lines (`RunRecord.rewind`).
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = 0
        self._offset = 0

    def read(self) -> list[dict[str, Any]]:
        """All new lines that are complete."""
        try:
            file = open(self._path, "rb")  # noqa: SIM115 (closed below)
        except FileNotFoundError:
            return []
        with file:
            number = os.fstat(file.fileno()).st_ino
            if number != self._file:
                self._file, self._offset = number, 0
            file.seek(self._offset)
            text = file.read()
        complete = text[: text.rfind(b"\n") + 1]
        self._offset += len(complete)
        return [json.loads(line) for line in complete.splitlines()]


def _progress(console: Console, unit: str) -> Progress:
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeRemainingColumn(elapsed_when_finished=True),
        console=console,
        transient=True,
    )
