"""What the local back end does around its ranks."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from data_tools.errors import UserError
from launcher.backends import local
from launcher.config import RunConfig
from launcher.quickstart import _with_free_name

ROOT = Path(__file__).parent.parent.parent


def failed(code: str, log: Path, words: str) -> subprocess.Popen[bytes]:
    log.write_text(words, encoding="utf-8")
    process = subprocess.Popen([sys.executable, "-c", code])
    process.wait()
    return process


def test_the_rank_that_began_it_is_named(tmp_path: Path) -> None:
    """Old words of the log do not count, and `connection closed` is not why."""
    logs = [tmp_path / f"rank-{rank}.log" for rank in range(3)]
    processes = [
        failed("exit(1)", logs[0], "error: of an earlier start\nRuntimeError: connection closed by peer\n"),
        failed("import os; os.kill(os.getpid(), 9)", logs[1], "step 3  loss 2.0\n"),
        failed("exit(0)", logs[2], ""),
    ]
    starts = [len("error: of an earlier start\n"), 0, 0]
    assert local._explain_failure(processes, logs, starts) == f"rank 1 killed by SIGKILL; log: {logs[1]}"
    processes[2] = failed("exit(1)", logs[2], "error: no room\nbye\n")
    assert local._explain_failure(processes, logs, starts).startswith("rank 2 ended with exit code 1: no room; log:")


def test_a_run_is_trained_once_at_a_time(tmp_path: Path) -> None:
    with (tmp_path / ".lock").open("w") as lock:
        local._lock(lock.fileno(), tmp_path)
        with pytest.raises(UserError, match="is being trained by other processes"):
            local.run_ranks(tmp_path, 1, False, lambda: None)


def test_a_terminated_command_stops_its_ranks(tmp_path: Path, recipe: Path) -> None:
    """SIGTERM as ranks start, before they listen: they get it later, stop, and none goes on alone."""
    command = [sys.executable, "-m", "launcher"]
    subprocess.run([*command, "prepare", str(recipe)], check=True, cwd=ROOT)
    train = subprocess.Popen([*command, "train", str(recipe), "--ranks", "2"], cwd=ROOT)
    log = tmp_path / "runs" / "tiny" / "logs" / "rank-1.log"
    deadline = time.monotonic() + 60
    while not log.exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    train.terminate()
    assert train.wait(120) == 85
    with (tmp_path / "runs" / "tiny" / ".lock").open("w") as lock:
        local._lock(lock.fileno(), tmp_path)  # every rank inherited the lock: it is free, so all are gone


def test_a_quickstart_leaves_earlier_runs_alone(tmp_path: Path) -> None:
    config = RunConfig.model_validate(
        {
            "name": "q",
            "runs": str(tmp_path),
            "model": {"config": {"architecture": "llama"}},
            "data": {"sources": [{"sample": "python_docs"}], "tokenizer": {}},
        }
    )
    assert _with_free_name(config).name == "q"
    for name in ("q", "q-2"):
        folder = tmp_path / name / "checkpoints" / "step-00000001"
        folder.mkdir(parents=True)
        (folder / "commit.json").write_text("{}")
    assert _with_free_name(config).name == "q-3"
