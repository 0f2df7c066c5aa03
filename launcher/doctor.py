"""`shardtune doctor`: does this machine, and does this cluster, have what a run needs?

here      Python and packages, GPUs, room                       always
cluster   Slurm answers, partition, limits, a job is taken      with a profile or a configuration
nodes     shared folder, clocks, code, room, GPUs, network      by a short job on as many nodes as training takes
"""

import json
import shutil
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from data_tools.errors import UserError
from data_tools.store import write_text
from launcher.backends import slurm, slurm_script
from launcher.cluster import ClusterConfig, seconds_of
from launcher.environment import variables_passed_on
from launcher.jobs import Chain, Job, Submitted
from launcher.node_check import look_at_node

_SECONDS_IN_QUEUE = 300
_SKEW = 5.0
"""Seconds by which clocks may differ: heartbeats and deadlines compare them."""
_LEAST_GB, _LEAST_INODES = 10, 10_000


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    what: str
    said: str
    good: bool


class DoctorFound(UserError):
    """Something is wrong."""


def doctor(cluster: ClusterConfig | None, runs: Path, console: Console) -> dict[str, Any]:
    """Look at everything; each finding is one line.

    Args:
        cluster: None: at this machine alone.
        runs: the folder of all runs.

    Raises:
        DoctorFound: something is wrong.
    """
    runs.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=".doctor-", dir=runs.absolute()))
    try:
        findings = _here(folder)
        if cluster is not None:
            findings += _cluster(cluster)
            if all(finding.good for finding in findings):
                findings += _nodes(cluster, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    for finding in findings:
        console.print("[green]ok[/]   " if finding.good else "[red]wrong[/]", end=" ")
        console.print(f"{finding.what}: {finding.said}", markup=False, highlight=False)
    if bad := [finding for finding in findings if not finding.good]:
        raise DoctorFound(f"{len(bad)} of {len(findings)} checks failed; the first: {bad[0].what}: {bad[0].said}")
    return {"checks": [vars(finding) for finding in findings]}


def _here(folder: Path) -> list[Finding]:
    facts = look_at_node(folder)
    torch = f"torch {facts['torch']}, {facts['gpus']} GPUs" if facts["torch"] else "no torch: it can only prepare"
    return [Finding("this machine", f"Python {facts['python']}, {torch}", True), _room("this machine", facts)]


def _room(where: str, facts: dict[str, Any]) -> Finding:
    inodes = facts["free_inodes"]
    said = f"{facts['free_gb']:,} GB free" + (f", {inodes:,} inodes" if inodes is not None else "")
    enough = facts["free_gb"] >= _LEAST_GB and (inodes is None or inodes >= _LEAST_INODES)
    return Finding(f"room, seen from {where}", said, enough)


def _cluster(cluster: ClusterConfig) -> list[Finding]:
    partitions = slurm.partitions()
    name = cluster.partition or next((each for each, facts in partitions.items() if facts.is_default), None)
    findings = [Finding("Slurm", f"answers; partitions {', '.join(partitions)}", True)]
    if name not in partitions:
        return [*findings, Finding("partition", f"there is none called {name}; set cluster.partition", False)]
    facts = partitions[name]
    limit = facts.seconds
    fits = limit is None or seconds_of(cluster.time) <= limit
    return [
        *findings,
        Finding("time limit", f"{cluster.time} asked, {facts.limit} allowed in {name}", fits),
        Finding("nodes", f"{cluster.nodes} asked, {facts.nodes} in {name}", cluster.nodes <= facts.nodes),
        Finding(
            "GPUs",
            f"{cluster.gpus_per_node} a node asked, {facts.gpus_per_node} in {name}",
            cluster.gpus_per_node <= facts.gpus_per_node,
        ),
    ]


def _nodes(cluster: ClusterConfig, folder: Path) -> list[Finding]:
    """Submit a short job to as many nodes as training takes, and compare what they say."""
    write_text(folder / "asked", "")
    write_text(folder / "run.yaml", "")  # the bodies of jobs want it
    job = Job(
        stage="doctor",
        body="doctor",
        nodes=cluster.nodes,
        tasks_per_node=1,
        cpus_per_task=None,
        gpus_per_node=cluster.gpus_per_node,
        memory=None,
        time="00:05:00",
        partition=cluster.partition,
    )
    (folder / "logs").mkdir()
    looking = Chain(
        name="shardtune",
        folder=folder,
        runs=(folder,),
        jobs=(job,),
        cluster=cluster,
        working_folder=Path.cwd(),
        python=sys.executable,
        folders=(),
        variables=variables_passed_on(places=True, contained=False),
        identity=folder.name,
    )
    script = folder / "doctor.sbatch"
    write_text(script, slurm_script.render_job(looking, job))
    planned = [Submitted("doctor", "slurm", str(script), "logs/doctor-*.out", 1)]
    findings = [Finding("a job", said, True) for said in slurm.check(looking, planned)]
    submitted = slurm.submit(looking, planned, lambda jobs: None)
    number = str(submitted[0].id)
    if waits := _wait(number):
        slurm.cancel([number])
        return [*findings, Finding("a job", waits, False)]
    return [*findings, *_compare(folder, cluster.nodes)]


def _wait(job: str) -> str | None:
    """Until the job is over; returns why it was not."""
    deadline = time.monotonic() + _SECONDS_IN_QUEUE
    state = slurm.states([job]).get(job)
    while state is not None and state.active:
        if time.monotonic() > deadline:
            return f"job {job} is {state.word} ({state.reason}) after {_SECONDS_IN_QUEUE} s; it was cancelled"
        time.sleep(0.5)
        state = slurm.states([job]).get(job)
    return None


def _compare(folder: Path, nodes: int) -> list[Finding]:
    looks = {path.name: json.loads(path.read_text("utf-8")) for path in sorted(folder.glob("node-*.json"))}
    logs = "".join(path.read_text("utf-8", errors="replace") for path in folder.glob("logs/*.out"))
    if len(looks) < nodes:
        last = logs.strip().splitlines()[-1:] or ["its output is empty"]
        hosts = (folder / "hosts").read_text("utf-8").split() if (folder / "hosts").exists() else []
        silent = [host for rank, host in enumerate(hosts) if f"node-{rank}.json" not in looks]
        who = ", ".join(silent) or f"{nodes - len(looks)} of {nodes} nodes"
        said = f"{who} wrote nothing into {folder.parent}: it is not shared, or they failed: {last[0]}"
        return [Finding("shared folder", said, False)]
    facts = list(looks.values())
    hosts = [each["host"] for each in facts]
    blind = [each["host"] for each in facts if not each["sees_folder"]]
    wrong = list(dict.fromkeys(said for each in facts for said in each["wrong"]))
    return [
        Finding("shared folder", f"{folder.parent} is the same on {', '.join(hosts)}", not blind),
        *(_same(what, key, facts) for what, key in (("code", "code"), ("Python", "python"), ("torch", "torch"))),
        *([_same("driver", "driver", facts)] if "driver" in facts[0] else []),
        _same("GPUs", "gpus", facts),
        _clocks({each["host"]: each["clock"] for each in facts}),
        *(_room(each["host"], each) for each in facts),
        Finding("network", "; ".join(wrong) or f"{len(facts)} nodes met and added up a tensor", not wrong),
    ]


def _clocks(clocks: dict[str, float]) -> Finding:
    """Seconds by which each clock is before that of the file system; one that is far from most is named."""
    skew = max(clocks.values()) - min(clocks.values())
    middle = statistics.median_low(clocks.values())
    odd = max(clocks, key=lambda host: abs(clocks[host] - middle))
    said = f"differ by {skew:.1f} s"
    good = skew <= _SKEW
    return Finding("clocks", said if good else f"{said}; that of {odd} is furthest from the others", good)


def _same(what: str, key: str, facts: list[dict[str, Any]]) -> Finding:
    """All nodes say the same; else those that differ from most are named."""
    values = [each.get(key) for each in facts]
    most = max(set(values), key=values.count)
    others = [f"{each['host']} has {each.get(key)}" for each in facts if each.get(key) != most]
    return Finding(what, "; ".join([f"{most}", *others]) if others else f"{most} on all nodes", not others)
