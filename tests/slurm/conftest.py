"""The development cluster, once for all tests here; all of them are marked `slurm` and run by `make test-slurm`."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster

HERE = Path(__file__).parent
PROGRAMS = ("slurmctld", "slurmd", "sbatch", "munged", "ip", "slurmdbd", "mariadbd")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.slurm)


@pytest.fixture(scope="session")
def can_run_slurm() -> None:
    """Root and Slurm: without them tests are skipped on a desk, and fail in CI."""
    missing = [] if os.geteuid() == 0 else ["root"]
    path = f"/usr/sbin:{os.environ['PATH']}"
    missing += [program for program in PROGRAMS if shutil.which(program, path=path) is None]
    if not missing:
        return
    reason = f"no development cluster without {', '.join(missing)}: run `make test-slurm` as root"
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def slurm(can_run_slurm: None) -> Iterator[Cluster]:
    """Two nodes, c1 and c2, with sixteen CPUs and eight GPUs each, as they say."""
    # Not in pytest's folder: paths of sockets below it would be too long.
    folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))
    cluster = Cluster(folder, "--nodes", "2")
    yield cluster
    cluster.stop()
