"""Kubernetes: one RayJob for all stages of a run, submitted and followed by kubectl.

What the job does there is `launcher.ray_driver`. Its manifest is `launcher.backends.kubernetes_manifest`.
"""

import json
import subprocess
from dataclasses import replace
from typing import Any

from data_tools.errors import UserError
from launcher.backends.kubernetes_manifest import manifest, name_of
from launcher.backends.travel import files_of
from launcher.jobs import Chain, JobState, Record, Submitted
from launcher.plain_yaml import plain_yaml

_FILE = "rayjob.yaml"
_SECONDS_TO_ANSWER = 60
_LARGEST = 1_000_000
"""Bytes of a ConfigMap, which Kubernetes limits to a MiB."""
_OVER = ("Complete", "Failed", "ValidationFailed")
_ENDS = {"apply": "; nothing was submitted", "create": "; nothing was submitted"}
_SUBMITTER = "ray-job-submitter"
"""KubeRay's name of the container beside the head, whose output is the driver's."""


def render(chain: Chain) -> dict[str, tuple[str, str]]:
    """The manifest of one RayJob that does all stages.

    Raises:
        UserError: a setting is missing, or KubeRay would refuse it.
    """
    text = plain_yaml(manifest(chain))
    return {job.stage: (_FILE, text) for job in chain.jobs}


def check(chain: Chain, planned: list[Submitted]) -> list[str]:
    """What the cluster would say to the manifest; and whether there is what it refers to.

    Raises:
        UserError: it would refuse it, or something is missing.
    """
    settings = chain.cluster.kubernetes
    for kind, key, name in (
        *(("persistentvolumeclaim", "claim", name) for name in (settings.claim, *settings.mounts)),
        ("secret", "secret", settings.secret),
        ("serviceaccount", "service_account", settings.service_account),
    ):
        if name and not _ask("get", kind, name, "--namespace", settings.namespace, "--ignore-not-found", "-o", "name"):
            raise UserError(
                f"cluster.kubernetes.{key}: namespace {settings.namespace} has no {kind} {name}; make it first; "
                f"nothing was submitted"
            )
    return [_ask("apply", "--dry-run=server", "--filename", planned[0].file)]


def submit(chain: Chain, planned: list[Submitted], record: Record) -> list[Submitted]:
    """Create the RayJob, and the ConfigMap that goes when it goes.

    Raises:
        UserError: the cluster refuses one of them; there is nothing then.
    """
    name, namespace = name_of(chain), chain.cluster.kubernetes.namespace
    files = {file: path.read_text("utf-8") for file, path in files_of(chain).items()}
    if sum(map(len, files.values())) > _LARGEST:
        raise UserError(f"{', '.join(files)} are more than a ConfigMap takes (1 MB); nothing was submitted")
    job = _job(name, namespace)  # of an earlier launch, or of one that was cut off
    if job and not _state(job).active:
        _delete(name, namespace)
        job = None
    job = job or json.loads(_ask("create", "--output=json", "--filename", planned[0].file))
    try:
        _ask("apply", "--filename=-", given=json.dumps(_config_map(job, files)))
    except UserError:
        _delete(name, namespace)
        raise
    done = [replace(job, id=f"{name}@{namespace}") for job in planned]
    record(done)
    return done


def _config_map(job: dict[str, Any], files: dict[str, str]) -> dict[str, Any]:
    names = {key: job["metadata"][key] for key in ("name", "namespace")}
    owner = {"apiVersion": job["apiVersion"], "kind": job["kind"], "name": names["name"], "uid": job["metadata"]["uid"]}
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {**names, "ownerReferences": [owner]},
        "data": files,
    }


def states(jobs: list[str]) -> dict[str, JobState]:
    """What KubeRay says of jobs that are still there.

    Raises:
        UserError: the cluster does not answer.
    """
    found = {}
    for job in set(jobs):
        name, _, namespace = job.partition("@")
        if known := _job(name, namespace):
            found[job] = _state(known)
    return found


def _state(job: dict[str, Any]) -> JobState:
    status = job.get("status") or {}
    deployment, word = status.get("jobDeploymentStatus", ""), status.get("jobStatus", "")
    if not word or deployment in ("Suspended", "Suspending", "Retrying", "ValidationFailed", "Failed"):
        word = deployment or "NEW"
    reason = " ".join(f"{status.get('reason', '')} {status.get('message', '')}".split())
    return JobState(word.upper(), reason[:300], deployment not in _OVER)


def output(job: str) -> str:
    """All that a job has said so far; nothing before it has a head.

    Raises:
        UserError: the cluster does not answer.
    """
    name, _, namespace = job.partition("@")
    known = _job(name, namespace)
    cluster = ((known or {}).get("status") or {}).get("rayClusterName")
    if not cluster:
        return ""
    head = f"--selector=ray.io/cluster={cluster},ray.io/node-type=head"
    if not _ask("get", "pods", "--namespace", namespace, head, "-o", "name"):
        return ""
    return _ask("logs", "--namespace", namespace, head, f"--container={_SUBMITTER}", "--tail=-1")


def cancel(jobs: list[str]) -> None:
    """Delete jobs with all that belongs to them.

    Raises:
        UserError: the cluster refuses.
    """
    for job in set(jobs):
        name, _, namespace = job.partition("@")
        _delete(name, namespace)


def _job(name: str, namespace: str) -> dict[str, Any] | None:
    text = _ask("get", "rayjobs.ray.io", name, "--namespace", namespace, "--ignore-not-found", "--output=json")
    return json.loads(text) if text else None


def _delete(name: str, namespace: str) -> None:
    _ask("delete", "rayjobs.ray.io", name, "--namespace", namespace, "--ignore-not-found")


def _ask(*arguments: str, given: str | None = None) -> str:
    """What kubectl prints.

    Raises:
        UserError: there is none, it does not answer in time, or it says no.
    """
    limit = f"--request-timeout={_SECONDS_TO_ANSWER}s"
    try:
        result = subprocess.run(
            ["kubectl", *arguments, limit],
            input=given,
            capture_output=True,
            text=True,
            timeout=2 * _SECONDS_TO_ANSWER,
            check=False,
        )
    except FileNotFoundError:
        raise UserError("there is no kubectl on PATH; install it, and say which cluster it means") from None
    except subprocess.TimeoutExpired:
        raise UserError(
            f"kubectl {arguments[0]} did not end in {2 * _SECONDS_TO_ANSWER} s; does the cluster answer?"
        ) from None
    if result.returncode:
        raise UserError(f"kubectl {arguments[0]}: {_why(result.stderr)}{_ENDS.get(arguments[0], '')}")
    return result.stdout.strip()


def _why(said: str) -> str:
    lines = [line.strip() for line in said.splitlines() if line.strip()] or ["it does not say why"]
    text = lines[-1].removeprefix("Error from server ").removeprefix("error: ")[:500]
    if "no matches for kind" in said or "the server doesn't have a resource type" in said:
        return f"{text} (the cluster lacks KubeRay's operator; see docs/launching_kubernetes.md)"
    return text
