"""This machine: the stages of a run one after the other, in the background."""

import os
import signal
import subprocess
from dataclasses import replace
from pathlib import Path
from shlex import join, quote

from data_tools.errors import UserError
from launcher.jobs import Chain, Job, JobState, Record, Submitted

_FILE = "local.sh"


def render(chain: Chain) -> dict[str, tuple[str, str]]:
    """One script for all stages.

    Raises:
        UserError: several machines are asked for.
    """
    if chain.cluster.nodes > 1:
        raise UserError(f"cluster.nodes={chain.cluster.nodes}: --on local has this machine alone; set cluster.nodes=1")
    lines = ["#!/bin/bash", "# All stages of a run, one after the other; each says in jobs/ends how it ended.", _RUNNER]
    lines += [f"cd {quote(str(chain.working_folder))} || exit", f"FOLDER={quote(str(chain.folder))}"]
    lines += [f"export {name}={quote(value)}" for name, value in chain.cluster.variables.items()]
    for job in chain.jobs:
        lines += [f"stage {job.stage} {end} {join(command)}" for end, command in _commands(chain, job)]
    return {job.stage: (_FILE, "\n".join([*lines, ""])) for job in chain.jobs}


_RUNNER = r"""
set -uo pipefail
umask 077

# Signals reach the stage that runs: training saves, and leaves with 85.
trap 'kill -TERM "$child" 2>/dev/null' TERM INT HUP

stage() {  # NAME, what its end is noted as, COMMAND
  local name=$1 end=$2 code=0
  shift 2
  "$@" >>"$FOLDER/logs/$name-local-$$.out" 2>&1 &
  child=$!
  wait "$child" || code=$?
  while kill -0 "$child" 2>/dev/null; do
    code=0
    wait "$child" || code=$?
  done
  mkdir -p "$FOLDER/jobs/ends"
  printf '{"job": "%s", "code": %d, "ended": "%(%FT%T%z)T"}\n' "$$" "$code" -1 >"$FOLDER/jobs/ends/$end.json"
  [[ $code == 0 ]] || exit "$code"
}
"""


def _commands(chain: Chain, job: Job) -> list[tuple[str, list[str]]]:
    """What their end is noted as → commands; each run of a sweep has an end of its own."""
    python = [chain.python, "-m", "launcher"]
    runs = {f"{job.stage}-{number}" if job.array > 1 else job.stage: str(run) for number, run in enumerate(chain.runs)}
    match job.stage:
        case "train":
            # Where nothing is said, as many ranks as `train` takes by itself: one per GPU.
            said = chain.cluster.ranks_per_node or chain.cluster.gpus_per_node
            more = ["--resume", *(["--ranks", str(job.tasks_per_node)] if said else [])]
            return [(end, [*python, "train", run, *more]) for end, run in runs.items()]
        case "export":
            return [(end, [*python, stage, run]) for end, run in runs.items() for stage in ("export", "report")]
        case "prepare-shares":
            return []
        case _:
            return [(job.stage, [*python, job.stage, str(chain.folder)])]


def check(chain: Chain, planned: list[Submitted]) -> list[str]:
    """This machine takes everything."""
    return []


def submit(chain: Chain, planned: list[Submitted], record: Record) -> list[Submitted]:
    """Start the script in a session of its own, so that it outlives this terminal."""
    with open(chain.folder / "logs" / "local.out", "ab") as log:
        process = subprocess.Popen(
            ["/bin/bash", planned[0].file],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    number = f"{process.pid}@{_started(process.pid)}"
    done = [replace(job, id=number) for job in planned]
    record(done)
    return done


def states(jobs: list[str]) -> dict[str, JobState]:
    """Whether the script runs."""
    return {job: JobState("RUNNING", f"process {job.partition('@')[0]}", True) for job in set(jobs) if _runs(job)}


def cancel(jobs: list[str]) -> None:
    """Ask the stage that runs to stop: training saves first."""
    for job in set(jobs):
        if _runs(job):
            os.kill(int(job.partition("@")[0]), signal.SIGTERM)


def _runs(job: str) -> bool:
    """Whether it is the same process: numbers are given out again."""
    pid, _, started = job.partition("@")
    return _started(int(pid)) == started


def _started(pid: int) -> str | None:
    """When a process was started, in ticks since the machine was; None: there is none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text("utf-8")
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()
    return None if fields[0] == "Z" else fields[19]
