"""Hugging Face Jobs: one job for all stages of a run on one machine, by huggingface_hub.

What the job does there is `launcher.container_driver`. The request is written down, but for the run's files, which are
added when it is sent, and the values of secrets, which are written nowhere.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from data_tools.errors import UserError
from launcher.backends.travel import files_of, one_run
from launcher.cluster import seconds_of
from launcher.environment import FILES_VARIABLE, packed_files, secret_values
from launcher.jobs import Chain, JobState, Record, Submitted

_FILE = "hf-job.json"
_LARGEST = 100_000
"""Characters of the variable with the run's files: Linux takes 131,072."""
_OVER = ("COMPLETED", "CANCELED", "ERROR", "DELETED")


def render(chain: Chain) -> dict[str, tuple[str, str]]:
    """The request for one job that does all stages.

    Raises:
        UserError: a setting is missing, or cannot be on one machine.
    """
    text = json.dumps(request(chain), indent=1, ensure_ascii=False) + "\n"
    return {job.stage: (_FILE, text) for job in chain.jobs}


def request(chain: Chain) -> dict[str, Any]:
    """What `HfApi.run_job` is asked, but for what only the sent one has; of secrets their names.

    Raises:
        UserError: a setting is missing, or cannot be on one machine.
    """
    cluster, settings = chain.cluster, chain.cluster.hf_jobs
    one_run(chain)
    for key, example in (("image", "registry.example/shardtune-gpu:0.1"), ("flavor", "a100x8"), ("bucket", "me/runs")):
        if getattr(settings, key) is None:
            raise UserError(f"cluster.hf_jobs.{key} is missing; for example `{key}: {example}`")
    if cluster.nodes > 1:
        raise UserError(f"cluster.nodes={cluster.nodes}: a Hugging Face Job is one machine; set cluster.nodes=1")
    seconds = sum(seconds_of(job.time) for job in chain.jobs)
    stages = ",".join(job.stage for job in chain.jobs)
    command = ["python", "-m", "launcher.container_driver", "--runs", settings.runs, "--stages", stages]
    caches = {"HF_HOME": f"{settings.runs}/.huggingface"}
    return {
        "namespace": settings.namespace,
        "image": settings.image,
        "command": [*command, "--ranks", str(cluster.ranks), "--seconds", str(seconds)],
        "env": {"PYTHONUNBUFFERED": "1", **caches, **dict(chain.variables), **cluster.variables},
        "secrets": list(settings.secrets),
        "flavor": settings.flavor,
        "timeout": seconds,
        "attempts": settings.attempts,
        "labels": {"name": chain.name.replace(".", "-"), "shardtune": chain.identity},
        "volumes": [{"type": "bucket", "source": settings.bucket, "mount_path": settings.runs}],
    }


def check(chain: Chain, planned: list[Submitted]) -> list[str]:
    """Whether the hub knows who asks, the flavor, and the secrets are there.

    Raises:
        UserError: one of them is not so.
    """
    cluster, settings = chain.cluster, chain.cluster.hf_jobs
    secret_values(settings.secrets, Path(cluster.secrets).expanduser())
    with _asking() as hub:
        name = hub.whoami()["name"]
        known = {each.name: each for each in hub.list_jobs_hardware()}
    if settings.flavor not in known:
        flavors = ", ".join(known)
        raise UserError(f"cluster.hf_jobs.flavor={settings.flavor}: the hub has {flavors}; nothing was submitted")
    flavor = known[settings.flavor]
    gpus = int(flavor.accelerator.quantity) if flavor.accelerator else 0
    if cluster.gpus_per_node != gpus:
        raise UserError(
            f"cluster.gpus_per_node={cluster.gpus_per_node}: {flavor.name} has {gpus}; nothing was submitted"
        )
    return [f"{name}: {flavor.pretty_name}, {flavor.unit_cost_usd:g} $ per {flavor.unit_label}"]


def submit(chain: Chain, planned: list[Submitted], record: Record) -> list[Submitted]:
    """Submit the job, unless one of the same configuration is not over.

    Raises:
        UserError: the hub refuses it.
    """
    from huggingface_hub import Volume

    asked = json.loads(Path(planned[0].file).read_text("utf-8"))
    files = packed_files({name: path.read_text("utf-8") for name, path in files_of(chain).items()})
    if len(files) > _LARGEST:
        raise UserError("the run's YAML, lock and modules are more than a variable takes; nothing was submitted")
    asked["env"][FILES_VARIABLE] = files
    asked["secrets"] = secret_values(chain.cluster.hf_jobs.secrets, Path(chain.cluster.secrets).expanduser())
    asked["volumes"] = [Volume(**volume) for volume in asked["volumes"]]
    with _asking() as hub:
        asked["namespace"] = asked["namespace"] or hub.whoami()["name"]
        same = hub.list_jobs(labels={"shardtune": chain.identity}, namespace=asked["namespace"])
        found = next((job for job in same if job.status.stage not in _OVER), None)
        name = f"{asked['namespace']}/{(found or hub.run_job(**asked)).id}"
    done = [replace(job, id=name) for job in planned]
    record(done)
    return done


def states(jobs: list[str]) -> dict[str, JobState]:
    """What the hub says of jobs that it still knows.

    Raises:
        UserError: it does not answer.
    """
    from huggingface_hub.errors import JobNotFoundError, RepositoryNotFoundError

    found = {}
    for job in set(jobs):
        namespace, _, name = job.partition("/")
        with _asking() as hub:
            try:
                status = hub.inspect_job(job_id=name, namespace=namespace).status
            except (JobNotFoundError, RepositoryNotFoundError):
                continue
        found[job] = JobState(
            str(status.stage), " ".join((status.message or "").split())[:300], status.stage not in _OVER
        )
    return found


def output(job: str) -> str:
    """All that a job has said so far.

    Raises:
        UserError: the hub does not answer.
    """
    namespace, _, name = job.partition("/")
    with _asking() as hub:
        return "".join(f"{line}\n" for line in hub.fetch_job_logs(job_id=name, namespace=namespace))


def cancel(jobs: list[str]) -> None:
    """End jobs.

    Raises:
        UserError: the hub refuses.
    """
    for job in set(jobs):
        namespace, _, name = job.partition("/")
        with _asking() as hub:
            hub.cancel_job(job_id=name, namespace=namespace)


@contextmanager
def _asking() -> Iterator[Any]:
    """A client of the hub; what goes wrong is one line."""
    try:
        import httpx2
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError
    except ImportError:
        raise UserError("Hugging Face Jobs need huggingface_hub 2.4; pip install 'shardtune[launch]'") from None
    hub = HfApi()
    try:
        yield hub
    except LocalTokenNotFoundError:
        raise UserError("the hub does not know who you are; set HF_TOKEN, or run hf auth login") from None
    except HfHubHTTPError as error:
        said = " ".join((error.server_message or str(error)).split())[:300]
        raise UserError(f"{hub.endpoint} answers with status {error.response.status_code}: {said}") from None
    except (httpx2.HTTPError, ConnectionError) as error:
        raise UserError(f"{hub.endpoint} cannot be reached ({error}); check the network and HF_ENDPOINT") from None
