"""A run that is stopped at any place goes on as if nothing had been: two ranks, dropout on, bit for bit."""

import importlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from data_tools.errors import UserError
from data_tools.store import TokenStore
from launcher.attempts import lead_seconds
from sft.progress import committed_checkpoints
from sft.record import read_metrics
from sft.stop import Stop, StopAsked, listen
from sft.world import World
from tests.ranks import run_ranks
from tests.sft.runs import plan_run


@contextmanager
def before_call(place: str, count: int, act: Callable[[], object]) -> Iterator[None]:
    """Do something just before a function is called for the `count`-th time; what it does stays as it is."""
    module, _, name = place.rpartition(".")
    owner = importlib.import_module(module)
    original, calls = getattr(owner, name), 0

    def function(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == count:
            act()
        return original(*arguments, **named)

    setattr(owner, name, function)
    try:
        yield
    finally:
        setattr(owner, name, original)


def train_twice(
    world: World, folder: str, place: str = "sft.session.make_batch", rank: int = 0, count: int = 0, how: str = ""
) -> dict[str, Any]:
    """Train a run that one rank is asked to stop at a place, and again until it is over."""
    from sft.run import TrainingRun
    from sft.train import train

    run = TrainingRun.open(Path(folder))

    def ask() -> None:
        if how == "file":
            (run.folder / "stop").touch()
        else:
            os.kill(os.getpid(), getattr(signal, how))

    if how == "deadline":
        os.environ["SHARDTUNE_DEADLINE"] = str(time.time() - 1 if world.rank == rank else time.time() + 1e6)
    with before_call(place, count if world.rank == rank else 0, ask):
        codes = [train(run, False, world, listen())]
    stopped = [path.name for path in committed_checkpoints(run.checkpoints)]
    validated = [line["step"] for line in read_metrics(run.folder) if "validation_loss" in line]
    (run.folder / "stop").unlink(missing_ok=True)
    os.environ.pop("SHARDTUNE_DEADLINE", None)
    if codes == [85]:
        codes.append(train(run, True, world, listen()))
    return {"codes": codes, "checkpoints": stopped, "validated": validated}


def stopped_runs(world: World, cases: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """`train_twice` for all cases, in one process."""
    return {name: train_twice(world, **case) for name, case in cases.items()}


def outcome(folder: Path) -> tuple[list[tuple[str, Any]], list[bytes], torch.Tensor]:
    """Everything a run computed: numbers to the last bit, answers, and logits of the trained model."""
    lines = [
        (name, value.hex() if isinstance(value, float) else value)
        for line in read_metrics(folder)
        for name, value in line.items()
        if not name.startswith(("time/", "memory", "tokens_per", "step_time"))
    ]
    answers = [path.read_bytes() for path in sorted((folder / "samples").iterdir())]
    newest = committed_checkpoints(folder / "checkpoints")[-1]
    return lines, answers, torch.load(newest / "probe.pt", weights_only=True)["logits"]


CASES: dict[str, dict[str, Any]] = {
    "undisturbed": {},
    "training": {"count": 8, "rank": 1, "how": "SIGUSR1"},
    "evaluating": {"place": "sft.session.sample_answers", "count": 2, "rank": 1, "how": "SIGTERM"},
    "last evaluation": {"place": "sft.session.validate", "count": 3, "rank": 0, "how": "SIGINT"},
    "first evaluation": {"place": "sft.session.validate", "count": 1, "rank": 1, "how": "SIGTERM"},
    "saving": {"place": "sft.session.probe_logits", "count": 2, "rank": 1, "how": "SIGTERM"},
    "last save": {"place": "sft.session.probe_logits", "count": 3, "rank": 1, "how": "SIGTERM"},
    "stop file": {"count": 8, "rank": 0, "how": "file"},
    "deadline": {"rank": 1, "how": "deadline"},
}


WHERE: dict[str, tuple[list[int], list[str], list[int]]] = {
    "undisturbed": ([0], ["step-00000003", "step-00000006"], [0, 3, 6]),
    "training": ([85, 0], ["step-00000001", "step-00000003"], [0]),
    "evaluating": ([85, 0], ["step-00000001", "step-00000003"], [0]),
    "last evaluation": ([85, 0], ["step-00000003", "step-00000006"], [0, 3]),
    "first evaluation": ([85, 0], [], []),
    "saving": ([85, 0], ["step-00000001", "step-00000003"], [0, 3]),
    "last save": ([0], ["step-00000003", "step-00000006"], [0, 3, 6]),
    "stop file": ([85, 0], ["step-00000001", "step-00000003"], [0]),
    "deadline": ([85, 0], [], []),
}
"""Exit codes of each, and when it stopped, its checkpoints and the steps after which it had been evaluated."""


@pytest.mark.parametrize("stage", [2, 3])
def test_a_stopped_run_goes_on_bit_for_bit(stage: int, store: TokenStore, chat_file: Path, tmp_path: Path) -> None:
    names = list(CASES) if stage == 2 else ["undisturbed", "evaluating"]
    sections: dict[str, Any] = {
        "train": {"packs_per_step": 6, "max_steps": 6, "learning_rate": 1e-2, "zero": {"stage": stage}},
        "evaluate": {"every": 3, "samples": ["Count to 3 and name a colour."], "max_new_tokens": 8},
        "checkpoint": {"every": 3},
    }
    cases = {}
    for name in names:
        folder = plan_run(tmp_path / name.replace(" ", "-"), store, chat_file, 2, **sections)
        cases[name] = {**CASES[name], "folder": str(folder)}
    first, second = run_ranks(2, "tests.sft.test_stop:stopped_runs", cases=cases)
    assert first == second, "ranks agree"
    expected = outcome(tmp_path / "undisturbed")
    assert first["undisturbed"]["codes"] == [0] and len(expected[1]) == 3
    assert lead_seconds(tmp_path / "undisturbed") != lead_seconds(tmp_path / "no run"), "it was measured"
    for name in names[1:]:
        lines, answers, logits = outcome(tmp_path / name.replace(" ", "-"))
        assert lines == expected[0], name
        assert answers == expected[1] and torch.equal(logits, expected[2]), name
    for name, report in first.items():
        assert (report["codes"], report["checkpoints"], report["validated"]) == WHERE[name], name


def test_why_a_run_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    main, other = World(0, 1, torch.device("cpu")), World(1, 1, torch.device("cpu"))
    told = False
    stop = Stop(tmp_path, main, lambda: told)
    stop.abandon_if_asked()
    assert not stop.ask() and not stop.reason
    told = True
    with pytest.raises(StopAsked):
        stop.abandon_if_asked()
    told = False
    assert stop.ask(), "they stay with it"
    assert [stop.reason] == ["a signal"]
    (tmp_path / "stop").touch()
    stop = Stop(tmp_path, main, lambda: False)
    assert stop.ask() and stop.reason == "the stop file"
    assert not Stop(tmp_path, other, lambda: False).ask(), "one rank looks at the file"
    monkeypatch.setenv("SHARDTUNE_DEADLINE", str(time.time() + 100))
    assert not Stop(tmp_path / "gone", main, lambda: False).ask()
    monkeypatch.setenv("SHARDTUNE_DEADLINE", str(time.time()))
    stop = Stop(tmp_path / "gone", main, lambda: False)
    assert stop.ask() and stop.reason == "the deadline"
    monkeypatch.setenv("SHARDTUNE_DEADLINE", "soon")
    with pytest.raises(UserError, match="SHARDTUNE_DEADLINE=soon: it must be seconds"):
        Stop(tmp_path, main, lambda: False)


@pytest.mark.parametrize(("before", "heard"), [("nohup", False), ("env --default-signal=HUP", True)])
def test_below_nohup_a_closed_terminal_is_no_request(before: str, heard: bool) -> None:
    script = "import os, signal; from sft.stop import listen; asked = listen(); os.kill(os.getpid(), signal.SIGHUP); "
    command = [*before.split(), sys.executable, "-c", script + "print(asked())"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(heard)
