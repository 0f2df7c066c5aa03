"""Ray: one job for all stages on a running cluster, by its Jobs API. What it does there is `launcher.ray_driver`.

The request is written down as it is sent. Whoever may ask the API sees it, so nothing secret is in it.
"""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from data_tools.errors import UserError
from launcher.backends.travel import driver, files_of
from launcher.config import RUN_FILE
from launcher.environment import use_ray_token
from launcher.jobs import Chain, JobState, Record, Submitted
from launcher.network import network_variables

_FILE = "ray-job.json"
_OVER = ("STOPPED", "SUCCEEDED", "FAILED")


def render(chain: Chain) -> dict[str, tuple[str, str]]:
    """The request for one job that does all stages."""
    text = json.dumps(request(chain), indent=1, ensure_ascii=False) + "\n"
    return {job.stage: (_FILE, text) for job in chain.jobs}


def request(chain: Chain) -> dict[str, Any]:
    """What is asked of the Jobs API, but for the id: the driver, and the folder that goes with it.

    Raises:
        UserError: a sweep is asked for, which is one run at a time here.
    """
    cluster = chain.cluster
    runs = cluster.ray.runs or (None if cluster.ray.storage else str(chain.folder.parent))
    variables = {**dict(chain.variables), **dict(network_variables(cluster.network)), **cluster.variables}
    return {
        "entrypoint": driver(chain, cluster.ray.python, RUN_FILE, runs),
        "runtime_env": {"working_dir": str(chain.folder / "jobs" / "ray"), "env_vars": variables},
        "metadata": {"run": chain.name, "identity": chain.identity},
        "entrypoint_num_cpus": 0,
    }


def check(chain: Chain, planned: list[Submitted]) -> list[str]:
    """Whether the cluster answers, and has what training takes.

    Raises:
        UserError: it does not.
    """
    with _asking(chain.cluster.ray.address) as client:
        return [f"Ray {client.get_version()} answers at {chain.cluster.ray.address}"]


def submit(chain: Chain, planned: list[Submitted], record: Record) -> list[Submitted]:
    """Submit the job under an id of its own: sent twice, it is one job.

    Raises:
        UserError: the cluster refuses it.
    """
    address = chain.cluster.ray.address
    _pack(chain)
    with _asking(address) as client:
        known = {job.submission_id: job.status for job in client.list_jobs()}
        names = (f"{chain.name}-{chain.identity}-{number}" for number in range(len(known) + 1))
        name = next(each for each in names if known.get(each) not in _OVER)
        if name not in known:
            client.submit_job(submission_id=name, **json.loads(Path(planned[0].file).read_text("utf-8")))
    done = [replace(job, id=f"{name}@{address}") for job in planned]
    record(done)
    return done


def _pack(chain: Chain) -> None:
    """The folder that goes with the job."""
    folder = chain.folder / "jobs" / "ray"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, path in files_of(chain).items():
        shutil.copy(path, folder / name)


def states(jobs: list[str]) -> dict[str, JobState]:
    """What the cluster says of jobs that it still knows.

    Raises:
        UserError: it does not answer.
    """
    found = {}
    for job in set(jobs):
        name, _, address = job.partition("@")
        with _asking(address) as client:
            known = {each.submission_id: each for each in client.list_jobs()}
        if name in known:
            word = str(known[name].status)
            found[job] = JobState(word, _first_line(known[name].message), word not in _OVER)
    return found


def output(job: str) -> str:
    """All that a job has said so far."""
    name, _, address = job.partition("@")
    with _asking(address) as client:
        return str(client.get_job_logs(name))


def cancel(jobs: list[str]) -> None:
    """Stop jobs.

    Raises:
        UserError: the cluster refuses.
    """
    for job in set(jobs):
        name, _, address = job.partition("@")
        with _asking(address) as client:
            client.stop_job(name)


@contextmanager
def _asking(address: str) -> Iterator[Any]:
    """A client of the Jobs API; what goes wrong is one line."""
    use_ray_token()
    try:
        from ray.exceptions import AuthenticationError
        from ray.job_submission import JobSubmissionClient
    except ImportError:
        raise UserError("Ray's Jobs API needs ray[default]; pip install 'shardtune[ray]'") from None
    try:
        yield JobSubmissionClient(address)
    except AuthenticationError as error:
        raise UserError(
            f"{address} wants a token ({_first_line(error)}); set RAY_AUTH_TOKEN_PATH to its file"
        ) from None
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise UserError(
            f"Ray at {address}: {_first_line(error)}; check cluster.ray.address, and that it runs"
        ) from None


def _first_line(said: object) -> str:
    return (str(said).strip().splitlines() or [""])[0][:300]
