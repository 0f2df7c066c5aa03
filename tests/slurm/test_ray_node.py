"""`docker/ray-node.sh` on two machines with addresses of their own, as in the containers of `docker/compose.yaml`."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm.cluster import ROOT, Cluster

RAY_NODE = ROOT / "docker" / "ray-node.sh"
JOBS = "http://c1:8265/api/jobs/"
ASK = """
import sys, urllib.error, urllib.request
headers = {"Authorization": f"Bearer {sys.argv[2]}"} if len(sys.argv) > 2 else {}
try:
    print(urllib.request.urlopen(urllib.request.Request(sys.argv[1], headers=headers)).status)
except urllib.error.HTTPError as error:
    print(error.code)
"""


@pytest.fixture
def token(slurm: Cluster, tmp_path: Path) -> Iterator[Path]:
    """The token of a head on c1 and a worker on c2, which was there before the head."""
    file = tmp_path / "token"
    bin_folder = Path(sys.executable).parent
    for node, role in (("c2", "worker"), ("c1", "head")):
        variables = {
            "PATH": f"{bin_folder}:/usr/bin:/bin",
            "RAY_HEAD": "c1",
            "RAY_AUTH_TOKEN_PATH": file,
            "RAY_TMPDIR": f"/tmp/ray-node-{node}",  # a container has its own
            "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        }
        given = " ".join(f"{name}={value}" for name, value in variables.items())
        start = f"echo $$ >{tmp_path}/{node}.pid; exec env {given} {RAY_NODE} {role} >{tmp_path}/{node}.log 2>&1"
        slurm.on(node, "bash", "-c", f"({start}) </dev/null >/dev/null 2>&1 &")
    yield file
    for node in ("c2", "c1"):
        pid = (tmp_path / f"{node}.pid").read_text().strip()
        slurm.call("on-node", node, "bash", "-c", f"kill {pid}; while kill -0 {pid} 2>/dev/null; do sleep 0.1; done")
        slurm.on(node, "rm", "-rf", f"/tmp/ray-node-{node}")


def test_a_head_and_a_worker_that_only_a_token_opens(slurm: Cluster, token: Path) -> None:
    nodes = f"RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH={token} {sys.executable} -m launcher.ray_nodes 2 --seconds 40"
    slurm.on("c2", "env", "RAY_ADDRESS=c1:6379", f"PYTHONPATH={ROOT}", "bash", "-c", nodes)
    assert token.stat().st_mode & 0o777 == 0o600 and len(token.read_text(encoding="utf-8")) == 64
    assert "success" in slurm.on("c1", sys.executable, "-c", HEALTH)
    assert slurm.on("c2", sys.executable, "-c", ASK, JOBS) == "401"
    assert slurm.on("c2", sys.executable, "-c", ASK, JOBS, "0" * 64) == "403"
    assert slurm.on("c2", sys.executable, "-c", ASK, JOBS, token.read_text(encoding="utf-8")) == "200"


HEALTH = "import urllib.request; print(urllib.request.urlopen('http://127.0.0.1:8265/api/gcs_healthz').read())"


def test_mistakes(slurm: Cluster, tmp_path: Path) -> None:
    file = f"RAY_AUTH_TOKEN_PATH={tmp_path}/t"
    assert slurm.call("env", file, RAY_NODE).stderr == "usage: ray-node head|worker\n"
    assert "RAY_AUTH_TOKEN_PATH: the file of the token" in slurm.call(RAY_NODE, "head").stderr
