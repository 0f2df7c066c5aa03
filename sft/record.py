"""The record of a run as it happens: metrics.jsonl, sample answers, and the status that followers read."""

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from data_tools.errors import OutOfReach, UserError
from data_tools.store import write_json, write_text
from sft.exits import MISTAKE

METRICS = "metrics.jsonl"
STATUS = "status.json"


class RunRecord:
    """Writes what happens into the run's folder.

    Args:
        folder: the run's.
        total_steps: of the run.
        writes: whether this is the main rank; on the others nothing is written.
    """

    def __init__(self, folder: Path, total_steps: int, writes: bool) -> None:
        self.folder = folder
        self.total_steps = total_steps
        self._writes = writes
        self._senders: list[Callable[[int, dict[str, float]], None]] = []
        if self._writes:
            (folder / "samples").mkdir(exist_ok=True)

    def status(self, phase: str, step: int, reason: str = "", warning: str = "") -> None:
        """Say what the run is doing: loading, evaluating, training, saving, copying, finished, stopped; and why, if
        asked; and what its user should know besides.
        """
        if self._writes:
            status = {"phase": phase, "step": step, "steps": self.total_steps, "reason": reason, "warning": warning}
            write_json(self.folder / STATUS, status)

    def also(self, send: Callable[[int, dict[str, float]], None]) -> None:
        """Every line from now on goes to this as well, as its step and the rest."""
        self._senders.append(send)

    def log(self, values: dict[str, Any]) -> None:
        """Append a line to metrics.jsonl, say it on the console, and send it on."""
        if self._writes:
            with open(self.folder / METRICS, "a", encoding="utf-8") as file:
                file.write(json.dumps(values) + "\n")
            print("  ".join(f"{name} {_short(value)}" for name, value in values.items()), flush=True)
            for send in self._senders:
                send(values["step"], {name: value for name, value in values.items() if name != "step"})

    def samples(self, step: int, answers: list[dict[str, str]]) -> None:
        """Keep the answers given after `step` steps."""
        if self._writes:
            write_json(self.folder / "samples" / f"step-{step:08d}.json", answers)

    def rewind(self, step: int, evaluated: bool = True) -> None:
        """Forget what was logged and answered after `step`: those steps will be done again.

        Args:
            evaluated: whether the evaluation after this very step counts; if not, it will be made again, too.
        """
        if self._writes:
            kept = [
                line
                for line in read_metrics(self.folder)
                if line["step"] < step or (line["step"] == step and (evaluated or "validation_loss" not in line))
            ]
            write_text(self.folder / METRICS, "".join(json.dumps(line) + "\n" for line in kept))
            for path in (self.folder / "samples").glob("step-*.json"):
                if int(path.stem.removeprefix("step-")) > step:
                    path.unlink()


def note_mistake(folder: Path, error: UserError) -> None:
    """Say why a rank refuses to go on: whoever starts jobs again looks there. What is out of reach may come back, so
    that another start is worth it; and where nothing can be written, the error itself matters more.
    """
    if isinstance(error, OutOfReach) or not (folder / "run.yaml").exists():
        return
    with suppress(OSError, UserError):
        (folder / MISTAKE).parent.mkdir(exist_ok=True)
        write_text(folder / MISTAKE, str(error))


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """All complete lines of metrics.jsonl; a kill may have cut the last one."""
    path = folder / METRICS
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines[:-1]]


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
