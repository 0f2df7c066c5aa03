"""All ranks of a run as processes of this machine."""

import fcntl
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from data_tools.errors import UserError
from launcher.environment import rank_environment
from sft.exits import HUNG, SIGNALS, STOP_FILE, STOPPED

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


def run_ranks(folder: Path, ranks: int, resuming: bool, while_running: Callable[[], None]) -> bool:
    """Run `sft.train` on `ranks` processes until all have ended; returns whether they were stopped before the run was
    over. What asks this process to stop (`SIGNALS`) is passed on to them; Ctrl-C after that ends them at once.

    Args:
        folder: the run's folder; each rank's output goes to `logs/rank-N.log`.
        while_running: called a few times a second, to show progress.

    Raises:
        UserError: a rank failed and the others were ended, or the run is being trained already.
        KeyboardInterrupt: at Ctrl-C, when they were asked to stop already.
    """
    logs = [folder / "logs" / f"rank-{rank}.log" for rank in range(ranks)]
    logs[0].parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "sft.train", str(folder), *(["--resume"] if resuming else [])]
    port = _free_port()
    with ExitStack() as stack:
        # The ranks inherit the lock: it is free when the last of them is gone, whatever became of this process.
        lock = stack.enter_context((folder / ".lock").open("w"))
        _lock(lock.fileno(), folder)
        (folder / STOP_FILE).unlink(missing_ok=True)  # it stopped the run before: now it goes on
        outputs = [stack.enter_context(log.open("ab" if resuming else "wb")) for log in logs]
        starts = [output.tell() for output in outputs]
        processes: list[Process] = []
        stack.callback(_end, processes)
        with _blocked_signals():
            for rank, output in enumerate(outputs):
                environment = rank_environment(rank, ranks, port)
                processes.append(_start(command, environment, output, lock.fileno()))
            was_asked = stack.enter_context(_passing_signals_to(processes))
        said = False
        while None in [process.poll() for process in processes] and not _failed(processes):  # each is looked at
            while_running()
            if was_asked() and not said:
                print("stopping: the ranks finish the step and save; Ctrl-C ends them at once", file=sys.stderr)
                said = True
            time.sleep(0.2)
        if _failed(processes):
            raise UserError(_explain_failure(processes, logs, starts))
        while_running()
        return processes[0].returncode == STOPPED


def _start(command: list[str], environment: dict[str, str], output: BinaryIO, lock: int) -> Process:
    return subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        pass_fds=(lock,),
    )


def _failed(processes: list[Process]) -> bool:
    """Whether one ended as it should not, or otherwise than another."""
    codes = {process.returncode for process in processes} - {None}
    return len(codes) > 1 or not codes <= {0, STOPPED}


@contextmanager
def _blocked_signals() -> Iterator[None]:
    """Signals wait until the end of this. Ranks that are started inside begin with them blocked, and get what came
    once they listen (`sft.stop.listen`): imports take seconds, in which a signal would kill them.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _passing_signals_to(processes: list[Process]) -> Iterator[Callable[[], bool]]:
    """Pass `SIGNALS` on inside this, which yields what says whether there was one; then Ctrl-C interrupts."""
    received: list[int] = []

    def pass_on(number: int, _: Any) -> None:
        if received and number == signal.SIGINT:
            raise KeyboardInterrupt
        received.append(number)
        for process in processes:
            process.send_signal(signal.SIGTERM)  # nothing to one that has ended

    heard = [
        number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN
    ]  # SIGHUP is not, below nohup
    before = {number: signal.signal(number, pass_on) for number in heard}
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


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
        who = "" if process.returncode == HUNG else f"rank {rank} {how}{words and ': '}"
        reasons.append((not said, killed is None, rank, f"{who}{words}; log: {log}"))
    return min(reasons)[-1]


def _end(processes: list[Process]) -> None:
    """What they have to save is saved already, or was cut off whole (`sft.checkpoint`)."""
    for process in processes:
        process.kill()
    for process in processes:
        process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
