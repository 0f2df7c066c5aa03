"""The starts of a training job: what each led to, and whether there is to be another.

    jobs/attempts.jsonl    {"launch": …}, {"begin": …, "job": …, "step": 200, "committed": …},
                           or {"end": …, "code": 85, "why": "stopped", "step": 400, "committed": …}

Called by the job itself, before and after its ranks run (`slurm/train.sh`), so it imports little. Two budgets: stops by
a time limit or a preemption are nobody's fault, crashes are; either way a start that committed nothing is not repeated.
"""

import argparse
import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

from data_tools.store import write_json
from sft.exits import FINISHED, MISTAKE, STOPPED
from sft.timings import TIMINGS

ATTEMPTS = Path("jobs") / "attempts.jsonl"
_BUDGET = Path("jobs") / "budget.json"

_FIRST_PORT, _PORTS = 20_000, 12_000
"""Above those of Ray's workers (10,002 to 19,999), below those that Linux gives out by itself (from 32,768 on)."""
_TOGETHER = 4
"""What one job takes."""
_UNMEASURED_LEAD = 300
"""Seconds before the limit to save in, as long as nothing was measured."""


@dataclass(frozen=True)
class Budget:
    """How often training may start again."""

    max_failures: int
    max_stops: int


@dataclass(frozen=True)
class Decision:
    """What comes after a start that ended."""

    requeue: bool
    why: str

    @property
    def finished(self) -> bool:
        """Whether the run is over as it should be."""
        return self.why == "finished"


def decide(history: list[dict[str, Any]], budget: Budget) -> Decision:
    """Whether a job starts again after the last start in its history ended.

    Args:
        history: the lines of `ATTEMPTS`, oldest first; the last one has an `end`.
    """
    last, gains = history[-1], _gains(history)
    ends = [line["why"] for line in history if "end" in line]
    if last["why"] == "finished":
        return Decision(False, "finished")
    if last["why"] == "refused":
        return Decision(False, f"{last['reason']}; when that is mended, shardtune launch goes on")
    if last["why"] == "stopped by a person":
        return Decision(False, "stopped by the stop file; shardtune launch goes on")
    barren = last["why"] == "failed" or gains[-2:] == [False] * 2  # a scheduler may take the machine while it loads
    if gains[-1:] != [True] and barren:
        return Decision(False, f"{last['why']}, and no checkpoint was committed since this start: giving up")
    if last["why"] == "failed":
        if (failures := ends.count("failed") + _lost(history)) > budget.max_failures:
            return Decision(
                False, f"failed {failures} times, and cluster.requeue.max_failures is {budget.max_failures}"
            )
        return Decision(True, f"failed, but committed since its start; going on from step {last['step']:,}")
    if (stops := ends.count("stopped") + ends.count("cut off")) > budget.max_stops:
        return Decision(False, f"stopped {stops} times, and cluster.requeue.max_stops is {budget.max_stops}")
    reason = f" by {last['reason']}" if last.get("reason") else ""
    return Decision(True, f"{last['why']}{reason} at step {max(last['step'], 0):,}; going on when it is its turn")


def _gains(history: list[dict[str, Any]]) -> list[bool]:
    """Whether each start that has an end committed anything: not by its step, which a damaged one may have had."""
    return [
        after["step"] > 0 and after["committed"] > before["committed"]
        for before, after in pairwise(history)
        if "begin" in before and "end" in after
    ]


def _lost(history: list[dict[str, Any]]) -> int:
    """Starts of which no end is known: their node went away."""
    kinds = ["begin" if "begin" in line else "end" for line in history]
    return sum(kind == "begin" == after for kind, after in pairwise(kinds))


def begin(run: Path, limit: float, job: int) -> tuple[int, float]:
    """Note a start; returns the port where the ranks meet, free on this machine, and when they have to stop.

    Args:
        run: the run's folder.
        limit: when the scheduler ends the job, in seconds since the epoch; 0: not known.
        job: its number, from which ports of different jobs come to be different.

    Raises:
        SystemExit: the starts so far do not allow another.
    """
    history = read_attempts(run)
    restarts = sum("begin" in line for line in history)
    if history and "begin" in history[-1]:  # the scheduler started it again by itself, as after a node's failure
        budget = budget_of(run)
        if (lost := _lost([*history, {"begin": 0}])) > budget.max_failures:
            sys.exit(f"error: {lost} starts ended without a word, and max_failures is {budget.max_failures}: giving up")
    note_begin(run, job)
    left = limit - time.time()
    lead = asked_lead(run) or min(lead_seconds(run), left / 2)
    return free_port(job, restarts), limit - lead if limit else float("inf")


def note_launch(run: Path) -> None:
    """Note that a person launches the run, again or for the first time: the budgets are whole."""
    _note(run, {"launch": _now()})


def note_begin(run: Path, job: int) -> None:
    """Note that a start begins, from what is committed."""
    _note(run, {"begin": _now(), "job": job, "host": socket.gethostname(), **committed(run)})
    for name in ("status.json", MISTAKE):  # they tell of the start before
        (run / name).unlink(missing_ok=True)


def end(run: Path, code: int, asked: str) -> Decision:
    """Note how a start ended, and decide.

    Args:
        code: the exit code of the ranks; of those that were asked to stop, or ended by SIGTERM, it may be 0.
        asked: the signal by which the scheduler asked to stop; `no`: it did not.
    """
    status = _read_json(run / "status.json")
    why, reason = "failed", f"SIG{asked}" if asked != "no" else str(status.get("reason", ""))
    if status.get("phase") == "finished":  # srun may have ended a rank that took long to go
        why = "finished"
    elif code == STOPPED or status.get("phase") == "stopped":  # srun may say instead how it ended the last ranks
        by_person = asked == "no" and status.get("reason") == "the stop file"
        why, code = "stopped by a person" if by_person else "stopped", STOPPED
    elif asked != "no" or code == FINISHED:
        why, reason = "cut off", reason or "SIGTERM"  # before it was saved
    elif (run / MISTAKE).exists():
        why, reason = "refused", (run / MISTAKE).read_text("utf-8")
    _note(run, {"end": _now(), "code": code, "why": why, "reason": reason, **committed(run)})
    return decide(read_attempts(run), budget_of(run))


def read_attempts(run: Path) -> list[dict[str, Any]]:
    """The starts since the run was launched last, oldest first."""
    path = run / ATTEMPTS
    lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.exists() else []
    launches = [number for number, line in enumerate(lines) if "launch" in line]
    return lines[launches[-1] + 1 :] if launches else lines


def committed_step(run: Path) -> int:
    """The step of the newest committed checkpoint; -1: there is none."""
    names = (path.parent.name.removeprefix("step-") for path in run.glob("checkpoints/step-*/commit.json"))
    return max((int(name) for name in names if name.isdigit()), default=-1)  # others are not whole, or damaged


def committed(run: Path) -> dict[str, float]:
    """The step of the newest checkpoint, and when one was committed last, in seconds since the epoch; 0: never."""
    times = [path.stat().st_mtime for path in run.glob("checkpoints/step-*/commit.json")]
    return {"step": committed_step(run), "committed": max(times, default=0.0)}


def lead_seconds(run: Path) -> float:
    """How long before its limit a run has to be asked: time for a step, a checkpoint and its copy elsewhere, twice, and
    a minute for schedulers that look at their clock now and then.
    """
    timings = _read_json(run / TIMINGS)
    if not timings:
        return _UNMEASURED_LEAD
    return 60 + 2 * sum(float(seconds) for seconds in timings.values())


def write_budget(run: Path, budget: Budget, lead: int | None) -> None:
    """Leave for the job what the configuration says.

    Args:
        lead: seconds before the limit at which to save; None: by what was measured.
    """
    (run / _BUDGET).parent.mkdir(exist_ok=True)
    write_json(run / _BUDGET, {**asdict(budget), "lead": lead})


def budget_of(run: Path) -> Budget:
    """What the launcher left for the job."""
    values = _read_json(run / _BUDGET)
    return Budget(int(values.get("max_failures", 3)), int(values.get("max_stops", 100)))


def asked_lead(run: Path) -> float | None:
    """Seconds that the configuration gives for saving before the limit."""
    lead = _read_json(run / _BUDGET).get("lead")
    return None if lead is None else float(lead)


def free_port(job: int, restarts: int) -> int:
    """The first of `_TOGETHER` ports that nobody has on this machine, others for each job and start."""
    for port in _ports(job, restarts):
        if all(_is_free(port + more) for more in range(_TOGETHER)):
            return port
    sys.exit(f"error: no port from {_FIRST_PORT} on is free on this machine")


def _ports(job: int, restarts: int) -> Iterator[int]:
    blocks = _PORTS // _TOGETHER
    return (_FIRST_PORT + (job * 7 + restarts + more) % blocks * _TOGETHER for more in range(blocks))


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True


def _note(run: Path, line: dict[str, Any]) -> None:
    path = run / ATTEMPTS
    path.parent.mkdir(exist_ok=True)
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
        file.flush()
        os.fsync(file.fileno())


def _read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text("utf-8")) if path.exists() else {}


def _now() -> str:
    return datetime.fromtimestamp(time.time()).astimezone().isoformat(timespec="seconds")


def main() -> None:
    """`begin RUN --limit SECONDS` prints port and deadline, `end RUN --code N --asked SIGNAL` what comes next."""
    parser = argparse.ArgumentParser(prog="python -m launcher.attempts")
    parser.add_argument("what", choices=("begin", "end", "port"))
    parser.add_argument("run", type=Path)
    parser.add_argument("--limit", type=float, default=0)
    parser.add_argument("--code", type=int, default=0)
    parser.add_argument("--asked", default="no")
    options = parser.parse_args()
    job = int(os.environ.get("SLURM_JOB_ID", os.getpid()))
    if options.what == "port":
        print(free_port(job, 0))
    elif options.what == "begin":
        port, deadline = begin(options.run, options.limit, job)
        print(port, "inf" if deadline == float("inf") else int(deadline))
    else:
        decision = end(options.run, options.code, options.asked)
        print("requeue" if decision.requeue else "finished" if decision.finished else "stop", f"({decision.why})")


if __name__ == "__main__":
    main()
