"""A Ray cluster of two nodes on this machine, with a token."""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

RAY = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block"]


@dataclass(frozen=True)
class RayCluster:
    """Where it answers, and what its clients and nodes need to have in their environment."""

    address: str
    environment: dict[str, str]

    def run(self, *command: object, folder: Path, token: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a Python module as a client, with the token or without."""
        environment = dict(self.environment)
        if not token:
            del environment["RAY_AUTH_TOKEN_PATH"], environment["RAY_AUTH_MODE"]
        return subprocess.run(
            [sys.executable, "-m", *map(str, command)],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )


def free_ports(count: int) -> list[int]:
    """Ports that nobody has."""
    probes = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[RayCluster]:
    """Two nodes of three CPUs; only what is started here is stopped."""
    folder = Path(tempfile.mkdtemp(prefix="ray2-", dir="/tmp"))  # a short path: unix sockets live below it
    token = folder / "token"
    token.touch(0o600)
    token.write_text(secrets.token_hex(32), "utf-8")
    root = str(Path(__file__).parents[2])
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
        "HOME": str(folder),  # no token of the user's own is found
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_USAGE_STATS_ENABLED": "0",
        "PYTHONPATH": root,
    }
    gcs, dashboard, *others = free_ports(5)
    head = ["--head", f"--port={gcs}", f"--dashboard-port={dashboard}", f"--ray-client-server-port={others[0]}"]
    nodes = [
        [*head, "--dashboard-host=127.0.0.1", f"--dashboard-agent-listen-port={others[1]}"],
        [f"--address=127.0.0.1:{gcs}", f"--dashboard-agent-listen-port={others[2]}"],
    ]
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for number, options in enumerate(nodes):
            with open(folder / f"node-{number}.log", "wb") as log:
                options = [*options, "--num-cpus=3", f"--temp-dir={folder / str(number)}"]
                # A folder and the rights to a bucket, as a machine of a cloud has them.
                own = {"SHARDTUNE_CACHE": str(folder / f"cache-{number}")}
                own |= {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}
                processes.append(
                    subprocess.Popen(
                        [*RAY, *options], env={**environment, **own}, stdout=log, stderr=log, start_new_session=True
                    )
                )
            _wait(folder / f"node-{number}.log", processes[-1])
        yield RayCluster(f"http://127.0.0.1:{dashboard}", {**environment, "GCS": f"127.0.0.1:{gcs}"})
    finally:
        for process in reversed(processes):
            process.send_signal(signal.SIGTERM)
        for process in processes:
            process.wait(60)
        shutil.rmtree(folder, ignore_errors=True)


def _wait(log: Path, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 120
    while "Ray runtime started" not in log.read_text("utf-8", errors="replace"):
        assert process.poll() is None and time.monotonic() < deadline, log.read_text("utf-8", errors="replace")
        time.sleep(0.2)
