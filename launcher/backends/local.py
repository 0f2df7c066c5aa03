"""All ranks of a run as processes of this machine."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

from data_tools.errors import UserError
from launcher.environment import rank_environment

GRACE_SECONDS = 10
"""What ranks get between being asked to stop and being killed."""


def default_ranks() -> int:
    """One rank per GPU; on a machine without GPUs two, where it has two cores."""
    import torch

    return torch.cuda.device_count() or min(2, os.cpu_count() or 1)


def run_ranks(folder: Path, ranks: int, resuming: bool, while_running: Callable[[], None]) -> None:
    """Run `sft.train` on `ranks` processes until all have ended.

    Args:
        folder: the run's folder; each rank's output goes to `logs/rank-N.log`.
        while_running: called a few times a second, to show progress.

    Raises:
        UserError: a rank failed; the others were stopped.
    """
    logs = folder / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "sft.train", str(folder), *(["--resume"] if resuming else [])]
    port = _free_port()
    files: list[IO[bytes]] = []
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for rank in range(ranks):
            files.append((logs / f"rank-{rank}.log").open("ab" if resuming else "wb"))
            processes.append(
                subprocess.Popen(
                    command,
                    env=rank_environment(rank, ranks, port),
                    stdin=subprocess.DEVNULL,
                    stdout=files[-1],
                    stderr=subprocess.STDOUT,
                )
            )
        while any(process.poll() is None for process in processes):
            _raise_if_failed(processes, logs)
            while_running()
            time.sleep(0.2)
        _raise_if_failed(processes, logs)
        while_running()
    finally:
        _stop(processes)
        for file in files:
            file.close()


def _raise_if_failed(processes: list[subprocess.Popen[bytes]], logs: Path) -> None:
    for rank, process in enumerate(processes):
        if process.poll():
            log = logs / f"rank-{rank}.log"
            raise UserError(f"rank {rank} ended with exit code {process.returncode}: {_last_words(log)}; log: {log}")


def _last_words(log: Path) -> str:
    """The line that says why: the last `error:` line, else the last line at all."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return (errors or lines or ["it said nothing"])[-1]


def _stop(processes: list[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        if process.poll() is None:
            process.terminate()
    deadline = time.monotonic() + GRACE_SECONDS
    for process in processes:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
