"""Slurm: what is asked of its commands, none of which needs accounting (sacct). The scripts are `slurm_script`'s."""

import re
import subprocess
from dataclasses import dataclass, replace

from data_tools.errors import UserError
from launcher.backends.slurm_script import comment, render
from launcher.jobs import Chain, Job, JobState, Record, Submitted

__all__ = ["cancel", "check", "partitions", "render", "states", "submit"]

_SECONDS_TO_ANSWER = 60
"""A controller that restarts is waited for."""
_ACTIVE = frozenset(
    {
        *("PENDING", "RUNNING", "CONFIGURING", "COMPLETING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED"),
        *("RESIZING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT", "SPECIAL_EXIT"),
    }
)
"""States of jobs that are not over."""


def check(chain: Chain, planned: list[Submitted]) -> list[str]:
    """What Slurm would do with each script: when and where it would start.

    Raises:
        UserError: it would not take one of them.
    """
    known, lines = partitions(), []
    for job in chain.jobs:
        _check_partition(job, known)
    for each in planned:
        result = _run("sbatch", "--test-only", each.file)
        said = _last_line(result.stderr or result.stdout)
        if result.returncode:
            raise UserError(f"Slurm would not take {each.file}: {said}; nothing was submitted")
        lines.append(f"{each.stage}: {said}")
    return lines


def _check_partition(job: Job, known: dict[str, "Partition"]) -> None:
    """What Slurm would say in riddles, or not before the job waits for ever."""
    name = job.partition or next((each for each, partition in known.items() if partition.is_default), None)
    asked = [known.get(each) for each in (name or "").split(",")]
    if name is None or None in asked:
        raise UserError(
            f"cluster.partition: there is no partition {name or 'by default'}; this Slurm has {', '.join(known)}; "
            f"nothing was submitted"
        )
    partitions = [partition for partition in asked if partition]
    if job.nodes > (nodes := max(partition.nodes for partition in partitions)):
        raise UserError(f"cluster.nodes={job.nodes}: partition {name} has {nodes}; nothing was submitted")
    if job.gpus_per_node > (gpus := max(partition.gpus_per_node for partition in partitions)):
        raise UserError(
            f"cluster.gpus_per_node={job.gpus_per_node}: a node of partition {name} has {gpus}; nothing was submitted"
        )


def submit(chain: Chain, planned: list[Submitted], record: Record) -> list[Submitted]:
    """Submit all scripts; nothing runs before all are submitted, and when one is refused, the others are taken back.

    Raises:
        UserError: Slurm refuses one.
    """
    lost = _find([comment(chain, job) for job in chain.jobs])  # of a launch that was cut off
    done: list[Submitted] = []
    for job, each in zip(chain.jobs, planned, strict=True):
        before = next((earlier for earlier in done if earlier.stage == job.after), None)
        # A task of an array waits for its own run alone.
        kind = "aftercorr" if before and before.tasks == each.tasks > 1 else "afterok"
        depends = f"--dependency={kind}:{before.id}" if before else "--hold"
        try:
            number = lost.get(comment(chain, job)) or _sbatch(each.file, depends)
        except UserError:
            cancel([earlier.id for earlier in done if earlier.id])
            raise
        done.append(replace(each, id=number))
        record([*done, *planned[len(done) :]])
    result = _run("scontrol", "release", str(done[0].id))
    if result.returncode:
        raise UserError(f"Slurm keeps job {done[0].id} on hold: {_last_line(result.stderr)}; run scontrol release")
    return done


def _sbatch(script: str, option: str) -> str:
    result = _run("sbatch", "--parsable", option, script)
    if result.returncode:
        raise UserError(f"Slurm does not take {script}: {_last_line(result.stderr)}; nothing was submitted")
    return result.stdout.strip().split(";")[0]


def _find(comments: list[str]) -> dict[str, str]:
    """The active jobs of this user with these comments: comment → job id."""
    result = _run("squeue", "--me", "-h", "-o", "%F|%k")
    if result.returncode:
        raise UserError(f"Slurm does not answer: {_last_line(result.stderr)}; nothing was submitted")
    lines = [line.split("|", 1) for line in result.stdout.splitlines()]
    return {comment: job for job, comment in lines if comment in comments}


def states(jobs: list[str]) -> dict[str, JobState]:
    """What Slurm says of the jobs that it still knows; of an array, what its tasks have in common.

    Raises:
        UserError: Slurm does not answer.
    """
    if not jobs:
        return {}
    result = _run("squeue", "-h", "-t", "all", "-o", "%F|%T|%R", "-j", ",".join(jobs))
    if result.returncode and "Invalid job id" not in result.stderr:
        raise UserError(f"Slurm does not answer: {_last_line(result.stderr)}")
    if result.returncode and len(jobs) > 1:  # it has forgotten one, and then says nothing of the others
        return {job: state for each in jobs for job, state in states([each]).items()}
    found: dict[str, list[JobState]] = {}
    for line in result.stdout.splitlines():
        job, word, reason = line.split("|", 2)
        found.setdefault(job, []).append(JobState(word, reason.strip("()"), word in _ACTIVE))
    return {job: min(tasks, key=_urgency) for job, tasks in found.items()}


def _urgency(state: JobState) -> tuple[bool, bool, bool]:
    """What is told of an array: that a task runs, else that one waits, else that one failed."""
    return state.word != "RUNNING", not state.active, state.word == "COMPLETED"


@dataclass(frozen=True)
class Partition:
    """What `sinfo` says of a partition."""

    is_default: bool
    limit: str
    """Its longest time, in Slurm's words."""
    nodes: int
    gpus_per_node: int
    """Of the nodes with most."""

    @property
    def seconds(self) -> int | None:
        """Its longest time; None: there is no end."""
        parts = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", self.limit)
        if parts is None:
            return None
        days, hours, minutes, seconds = (int(part or 0) for part in parts.groups())
        return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


def partitions() -> dict[str, Partition]:
    """The partitions of this cluster.

    Raises:
        UserError: Slurm does not answer.
    """
    result = _run("sinfo", "-h", "-o", "%P|%l|%D|%G")
    if result.returncode:
        raise UserError(f"Slurm does not answer: {_last_line(result.stderr)}")
    found: dict[str, Partition] = {}
    for line in result.stdout.splitlines():
        name, limit, nodes, gres = line.split("|", 3)
        gpus = sum(int(number) for number in re.findall(r"gpu:(?:[^:,(]+:)?(\d+)", gres))
        before = found.get(name.rstrip("*"), Partition(name.endswith("*"), limit, 0, 0))
        both = before.nodes + int(nodes), max(before.gpus_per_node, gpus)
        found[name.rstrip("*")] = Partition(name.endswith("*"), limit, *both)
    return found


def cancel(jobs: list[str]) -> None:
    """End jobs.

    Raises:
        UserError: Slurm refuses.
    """
    result = _run("scancel", *jobs) if jobs else None
    if result and result.returncode:
        raise UserError(f"Slurm does not cancel {', '.join(jobs)}: {_last_line(result.stderr)}")


def _run(*command: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS_TO_ANSWER, check=False)
    except FileNotFoundError:
        raise UserError(
            f"there is no {command[0]} on PATH; launch where Slurm's commands are (a login node), or use --on local"
        ) from None
    except subprocess.TimeoutExpired:
        raise UserError(f"{command[0]} did not answer in {_SECONDS_TO_ANSWER} s; is Slurm's controller up?") from None


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return re.sub(r"^\w+: (error: )?", "", lines[-1]) if lines else "it does not say why"
