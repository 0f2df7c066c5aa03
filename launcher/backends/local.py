"""All ranks of a run as processes of this machine."""

import fcntl
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from data_tools.errors import UserError
from launcher.environment import rank_environment

GRACE_SECONDS = 10
"""What ranks get between being asked to stop and being killed."""

Process = subprocess.Popen[bytes]


def default_ranks() -> int:
    """One rank per GPU; on a machine without GPUs two, where it has two cores."""
    return _gpus() or min(2, os.cpu_count() or 1)


def check_ranks(ranks: int) -> None:
    """Every rank needs a GPU of its own, where there are any.

    Raises:
        UserError: there are too few, or none is asked for.
    """
    if ranks < 1:
        raise UserError(f"--ranks {ranks}: there must be at least one")
    if 0 < _gpus() < ranks:
        raise UserError(f"--ranks {ranks}: this machine has {_gpus()} GPUs, and each rank needs its own")


def _gpus() -> int:
    try:
        import torch
    except ImportError:
        return 0  # a node that only prepares
    return int(torch.cuda.device_count())


def run_ranks(folder: Path, ranks: int, resuming: bool, while_running: Callable[[], None]) -> None:
    """Run `sft.train` on `ranks` processes until all have ended.

    Args:
        folder: the run's folder; each rank's output goes to `logs/rank-N.log`.
        while_running: called a few times a second, to show progress.

    Raises:
        UserError: a rank failed and the others were stopped, or the run is being trained already.
    """
    logs = [folder / "logs" / f"rank-{rank}.log" for rank in range(ranks)]
    logs[0].parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "sft.train", str(folder), *(["--resume"] if resuming else [])]
    port = _free_port()
    with ExitStack() as stack:
        # The ranks inherit the lock: it is free when the last of them is gone, whatever became of this process.
        lock = stack.enter_context((folder / ".lock").open("w"))
        _lock(lock.fileno(), folder)
        outputs = [stack.enter_context(log.open("ab" if resuming else "wb")) for log in logs]
        starts = [output.tell() for output in outputs]
        processes = [
            subprocess.Popen(
                command,
                env=rank_environment(rank, ranks, port),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=(lock.fileno(),),
            )
            for rank, output in enumerate(outputs)
        ]
        stack.callback(_stop, processes)
        while any(process.poll() is None for process in processes):
            if any(process.returncode for process in processes):
                break
            while_running()
            time.sleep(0.2)
        if any(process.returncode for process in processes):
            raise UserError(_explain_failure(processes, logs, starts))
        while_running()


def _lock(descriptor: int, folder: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(f"{folder} is being trained by other processes; wait for them, or use name=NAME") from None


def _explain_failure(processes: list[Process], logs: list[Path], starts: list[int]) -> str:
    """Name the rank that began it: when one fails, the others soon fail for want of it."""
    time.sleep(1)
    reasons = []
    for rank, (process, log, start) in enumerate(zip(processes, logs, starts, strict=True)):
        if not process.poll():
            continue
        lines = log.read_bytes()[start:].decode("utf-8", errors="replace").split("\n")
        said = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
        last = [line.strip() for line in lines if line.strip()][-1:]
        killed = f"killed by {signal.Signals(-process.returncode).name}" if process.returncode < 0 else None
        how = killed or f"ended with exit code {process.returncode}"
        words = (said or ([] if killed else last) or [""])[-1]
        reasons.append((not said, killed is None, rank, f"rank {rank} {how}{words and ': '}{words}; log: {log}"))
    return min(reasons)[-1]


def _stop(processes: list[Process]) -> None:
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
