"""Stopping and failing as users and schedulers see it: the command, its ranks, signals and exit codes."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from data_tools.store import TokenStore
from sft.record import read_metrics

ROOT = Path(__file__).parent.parent.parent
LONG = ("train.max_steps=100000", "checkpoint.every=100000", "evaluate.every=100000")


def start(recipe: Path, store: TokenStore, *overrides: str) -> subprocess.Popen[str]:
    """A command in a group of its own, so that a test can signal all of it, as a terminal does."""
    command = [sys.executable, "-m", "launcher", "train", str(recipe), f"data.store={store.folder}", "--ranks", "2"]
    return subprocess.Popen([*command, *overrides], cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True)


def wait_for(condition: Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def steps(run: Path) -> int:
    return max((line["step"] for line in read_metrics(run)), default=0)


def process_of(run: Path, rank: int) -> int:
    return int(json.loads((run / "heartbeats" / f"rank-{rank}.json").read_text(encoding="utf-8"))["pid"])


def ended(command: subprocess.Popen[str], seconds: float = 120) -> tuple[int, str]:
    _, said = command.communicate(timeout=seconds)
    return command.returncode, said


def test_a_stopped_command_says_how_to_go_on(recipe: Path, store: TokenStore, tmp_path: Path) -> None:
    """SIGTERM to the command alone, then the stop file, then Ctrl-C to all its processes; the last once more."""
    run = tmp_path / "runs" / "tiny"
    command = start(recipe, store, *LONG)
    wait_for(lambda: steps(run) >= 2)
    command.terminate()
    code, said = ended(command)
    assert code == 85
    done = steps(run)
    assert f"stopped by a signal after {done} steps; `shardtune train {run} --resume` goes on" in said
    assert json.loads((run / "status.json").read_text())["phase"] == "stopped"

    (run / "stop").touch()  # as a person would leave it behind
    command = start(recipe, store, *LONG, "--resume")
    wait_for(lambda: steps(run) > done)
    assert not (run / "stop").exists()
    (run / "stop").touch()
    code, said = ended(command)
    assert code == 85 and "stopped by the stop file" in said
    assert [line["step"] for line in read_metrics(run) if "loss" in line] == list(range(1, steps(run) + 1))

    done = steps(run)
    command = start(recipe, store, *LONG, "train.hang_timeout=1000", "--resume")
    wait_for(lambda: steps(run) > done)
    ranks = [process_of(run, rank) for rank in (0, 1)]
    os.kill(ranks[1], signal.SIGSTOP)  # it will never agree
    os.killpg(command.pid, signal.SIGINT)
    time.sleep(1)
    assert command.poll() is None, "the first Ctrl-C waits for the ranks"
    os.killpg(command.pid, signal.SIGINT)
    code, said = ended(command, 20)
    assert code == 130 and "goes on from the newest checkpoint" in said
    assert "stopping: the ranks finish the step and save; Ctrl-C ends them at once" in said
    assert not any(Path(f"/proc/{rank}").exists() for rank in ranks)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_rank_that_is_lost_is_named(how: signal.Signals, recipe: Path, store: TokenStore, tmp_path: Path) -> None:
    run = tmp_path / "runs" / "tiny"
    command = start(recipe, store, *LONG, "train.hang_timeout=4")
    wait_for(lambda: steps(run) >= 2)
    ranks = [process_of(run, rank) for rank in (0, 1)]
    os.kill(ranks[1], how)
    code, said = ended(command, 30)
    (line,) = [line for line in said.splitlines() if line.startswith("error: ")]
    assert code == 1
    if how == signal.SIGKILL:
        assert "error: rank 1 killed by SIGKILL" in line
    else:
        assert f"error: no progress for 4 s: rank 1 (process {ranks[1]} on " in line
        assert "gives no sign of life while" in line and "rank 0" not in line.partition("; log:")[0]
    assert not any(Path(f"/proc/{rank}").exists() for rank in ranks)
