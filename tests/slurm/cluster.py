"""A real Slurm on this machine, for tests: two nodes or more, each with an address of its own (`slurm/devcluster`)."""

import os
import re
import subprocess
import time
from collections.abc import Collection
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
DEVCLUSTER = ROOT / "slurm" / "devcluster"
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "OUT_OF_MEMORY", "DEADLINE")
"""What a job is called that will not run again by itself."""
_SECONDS = 60


class Cluster:
    """A cluster in a folder; started, or configured anew, when it is made.

    Raises:
        AssertionError: it does not start; what it said.
    """

    def __init__(self, folder: Path, *options: str) -> None:
        self.folder = folder
        self.environment = dict(os.environ)
        """With it, Slurm's commands talk to this cluster."""
        command = [str(DEVCLUSTER / "up.sh"), "--exit-with", str(os.getpid()), *options, str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=2 * _SECONDS, check=False)
        if done.returncode:
            self.stop()
        assert done.returncode == 0, done.stderr
        for name, value in re.findall(r"^export (\w+)=(.*)$", done.stdout, re.MULTILINE):
            self.environment[name] = value.replace("$PATH", self.environment["PATH"])

    def stop(self) -> None:
        """End all of its processes and delete its folder."""
        subprocess.run([DEVCLUSTER / "down.sh", "--purge", self.folder], timeout=_SECONDS, check=True)

    def call(self, *command: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        """Run a command, one of Slurm's or another, outside of the nodes; its exit code may be any."""
        return subprocess.run(
            [str(part) for part in command],
            env=self.environment,
            cwd=cwd,
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=False,
        )

    def run(self, *command: object, cwd: Path | None = None) -> str:
        """Run a command that must succeed; what it printed."""
        done = self.call(*command, cwd=cwd)
        assert done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout.strip()

    def on(self, node: str, *command: object) -> str:
        """Run a command on a node (`head`, `c1`, …), like ssh."""
        return self.run("on-node", node, *command)

    def fault(self, action: str, node: str) -> None:
        """Make a fault, or undo it: crash, boot, cut, heal, stop-slurmd, kill-slurmd, start-slurmd."""
        self.run("node", action, node)

    def submit(self, *arguments: object, cwd: Path | None = None) -> str:
        """The number of a job that `sbatch` takes."""
        return self.run("sbatch", "--parsable", *arguments, cwd=cwd).split(";")[0]

    def state(self, job: str) -> str:
        """PENDING, RUNNING, COMPLETED, …; finished jobs stay known for a day."""
        return self.run("squeue", "--noheader", "--states=all", f"--jobs={job}", "--format=%T")

    def wait(self, job: str, states: Collection[str] = ENDED, seconds: float = _SECONDS) -> str:
        """Wait until a job is in one of these states, and return which."""
        end = time.monotonic() + seconds
        while (state := self.state(job)) not in states:
            assert time.monotonic() < end, f"job {job} is {state}\n{self.run('scontrol', 'show', 'job', job)}"
            time.sleep(0.2)
        return state
