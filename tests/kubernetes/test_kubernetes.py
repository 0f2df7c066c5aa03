"""`shardtune launch --on kubernetes` by the real kubectl to a real API server, which has no nodes: what KubeRay and its
pods would do is not here, and the states of jobs are written as it does."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from launcher.backends.kubernetes_manifest import manifest
from launcher.cluster import ClusterConfig
from launcher.plain_yaml import plain_yaml
from tests.conftest import chats, write_jsonl
from tests.kubernetes.conftest import Kubernetes, claim
from tests.launcher.chains import chain
from tests.launcher.commands import error, run
from tests.launcher.test_kubernetes_manifest import CASES, groups

JOB = "rayjobs.ray.io"


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_API_KEY", "planted")
    (tmp_path / "rows.py").write_text("def chat(row):\n    return row\n", "utf-8")
    write_jsonl(tmp_path / "chats.jsonl", chats(4))
    values = {
        "name": "onpods",
        "model": {"config": {"architecture": "llama", "hidden_size": 32}},
        "data": {"sources": [{"path": "chats.jsonl", "function": "rows:chat"}], "tokenizer": {"vocab_size": 300}},
        "train": {"max_steps": 3},
        "cluster": {"kubernetes": {"image": "tune:1", "namespace": "research", "claim": "runs", "secret": "keys"}},
    }
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(values), "utf-8")
    return path


def test_without_kuberay_it_says_so(
    bare_kubernetes: Kubernetes, config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first test, before RayJob is defined."""
    monkeypatch.setenv("KUBECONFIG", str(bare_kubernetes.admin))
    bare_kubernetes.ctl("create", "namespace", "bare")
    bare_kubernetes.ctl("create", "--filename=-", given=claim("bare"))
    settings = ("cluster.kubernetes.namespace=bare", "cluster.kubernetes.secret=null")
    said = error(capsys, "launch", config, "--on", "kubernetes", *settings)
    assert "lacks KubeRay's operator" in said and "nothing was submitted" in said


@pytest.mark.parametrize("name", CASES)
def test_a_real_server_takes_manifest_and_pods(kubernetes: Kubernetes, name: str) -> None:
    """The RayJob by its definition here, its pods by Kubernetes's own, which refuses what it does not know."""
    made = manifest(chain(ClusterConfig.model_validate(CASES[name])))
    made["metadata"]["namespace"] = "research"
    assert "created" in kubernetes.ctl("create", "--dry-run=server", "--filename=-", given=plain_yaml(made))
    for number, group in enumerate(groups(made)):
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": f"pod-{number}"}, **group["template"]}
        assert "created" in kubernetes.ctl(
            "create", "--dry-run=server", "--validate=true", "--filename=-", given=plain_yaml(pod)
        )
        pod["spec"]["containers"][0]["envForm"] = []
        with pytest.raises(AssertionError, match="envForm"):
            kubernetes.ctl("create", "--dry-run=server", "--validate=true", "--filename=-", given=plain_yaml(pod))


def test_a_run_is_launched_followed_and_cancelled(
    kubernetes: Kubernetes, config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(kubernetes.admin))
    facts = run(capsys, "launch", config, "--on", "kubernetes")
    assert [job["stage"] for job in facts["jobs"]] == ["fetch", "prepare", "train", "export"]
    assert run(capsys, "launch", config, "--on", "kubernetes") == facts
    (name,) = {job["id"].removesuffix("@research") for job in facts["jobs"]}
    assert kubernetes.ctl("get", JOB, "-n", "research", "-o", "name") == f"rayjob.ray.io/{name}"

    files = json.loads(kubernetes.ctl("get", "configmap", name, "-n", "research", "-o", "json"))
    job = json.loads(kubernetes.ctl("get", JOB, name, "-n", "research", "-o", "json"))
    assert files["metadata"]["ownerReferences"][0]["uid"] == job["metadata"]["uid"]
    assert set(files["data"]) == {"run.yaml", "rows.py"}
    assert "planted" not in json.dumps([files, job]) + Path(facts["jobs"][0]["file"]).read_text("utf-8")

    looks = run(capsys, "status", "onpods")["jobs"]
    assert [look["state"] for look in looks] == ["NEW"] * 4
    assert "has no output yet" in error(capsys, "logs", "onpods")
    assert "on kubernetes all stages are one job" in error(capsys, "logs", "onpods", "--stage", "train")
    tell(kubernetes, job, jobStatus="RUNNING", jobDeploymentStatus="Running", rayClusterName="x")
    assert {look["state"] for look in run(capsys, "status", "onpods")["jobs"]} == {"RUNNING", "WAITING"}
    assert "of another configuration" in error(capsys, "launch", config, "--on", "kubernetes", "train.max_steps=4")

    assert run(capsys, "cancel", "onpods")["cancelled"] == [f"{name}@research"]
    assert kubernetes.ctl("get", JOB, "-n", "research", "-o", "name") == ""
    assert {look["state"] for look in run(capsys, "status", "onpods")["jobs"]} == {"UNKNOWN"}


def tell(kubernetes: Kubernetes, job: dict[str, Any], **status: str) -> None:
    """As KubeRay's controller writes it."""
    place = f"/apis/ray.io/v1/namespaces/research/rayjobs/{job['metadata']['name']}/status"
    newest = json.loads(kubernetes.ctl("get", "--raw", place.removesuffix("/status")))
    kubernetes.ctl("replace", "--raw", place, "--filename=-", given={**newest, "status": status})


def test_what_failed_is_launched_anew_and_what_was_cut_off_is_found_again(
    kubernetes: Kubernetes, config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(kubernetes.admin))
    name = run(capsys, "launch", config, "--on", "kubernetes")["jobs"][0]["id"].removesuffix("@research")
    first = json.loads(kubernetes.ctl("get", JOB, name, "-n", "research", "-o", "json"))

    (config.parent / "runs" / "onpods" / "jobs" / "jobs.json").unlink()  # as if it was cut off before it was noted
    kubernetes.ctl("delete", "configmap", name, "-n", "research")
    run(capsys, "launch", config, "--on", "kubernetes")
    same = json.loads(kubernetes.ctl("get", JOB, name, "-n", "research", "-o", "json"))
    assert same["metadata"]["uid"] == first["metadata"]["uid"]
    assert "run.yaml" in kubernetes.ctl("get", "configmap", name, "-n", "research", "-o", "json")

    tell(kubernetes, first, jobStatus="FAILED", jobDeploymentStatus="Failed", reason="AppFailed", message="exit 1")
    looks = run(capsys, "status", "onpods")["jobs"]
    assert {(look["state"], look["note"]) for look in looks} == {("FAILED", "AppFailed exit 1")}
    run(capsys, "launch", config, "--on", "kubernetes")
    second = json.loads(kubernetes.ctl("get", JOB, name, "-n", "research", "-o", "json"))
    assert second["metadata"]["uid"] != first["metadata"]["uid"]
    run(capsys, "cancel", "onpods")


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("claim=run", "namespace research has no persistentvolumeclaim run; make it first"),
        ("secret=key", "namespace research has no secret key"),
        ("service_account=me", "namespace research has no serviceaccount me"),
        ("namespace=reserch", "namespace reserch has no persistentvolumeclaim runs"),
    ],
)
def test_what_is_missing_is_said_before_anything_is_submitted(
    setting: str,
    said: str,
    kubernetes: Kubernetes,
    config: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(kubernetes.admin))
    assert said in error(capsys, "launch", config, "--on", "kubernetes", f"cluster.kubernetes.{setting}")
    assert kubernetes.ctl("get", JOB, "--all-namespaces", "-o", "name") == ""


def test_who_may_not_is_told_so(
    kubernetes: Kubernetes, config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(kubernetes.stranger))
    assert "stranger" in error(capsys, "launch", config, "--on", "kubernetes")
    assert kubernetes.ctl("get", JOB, "--all-namespaces", "-o", "name") == ""
