"""RayJobs: as the golden files, valid for a strict definition, within KubeRay's rules, and nothing in them runs."""

import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from data_tools.errors import UserError
from launcher.backends.kubernetes import render
from launcher.backends.kubernetes_manifest import manifest
from launcher.cluster import ClusterConfig
from launcher.jobs import jobs_of
from launcher.plain_yaml import plain_yaml
from tests.launcher.chains import GOLDEN, HOSTILE, chain

DEFINITION = Path(__file__).parent / "rayjob_crd.yaml"
CASES: dict[str, dict[str, Any]] = {
    "cpus": {"kubernetes": {"image": "shardtune-cpu:0.1", "claim": "runs"}, "fetch": "job"},
    "gpus": {
        "nodes": 4,
        "gpus_per_node": 8,
        "cpus_per_rank": 8,
        "network": "ib",
        "variables": {"NCCL_DEBUG": "WARN", "NOTE": "it's $(HOME); $$ `now`", "Y": "y", "E": "1e3"},
        "kubernetes": {
            "image": "registry.example/team/shardtune-gpu@sha256:0123",
            "namespace": "research",
            "claim": "runs.shared",
            "runs": "/mnt/runs",
            "mounts": {"datasets": "/data", "models": "/models"},
            "cpus": 96,
            "memory": "1Ti",
            "shared_memory": "128Gi",
            "secret": "keys",
            "service_account": "tuner",
            "node_selector": {"cloud.google.com/gke-accelerator": "nvidia-h100-80gb", "spot": "true"},
            "queue": "gpus",
            "ttl": 0,
            "retries": 2,
            "ray_version": "2.52.0",
        },
    },
}


def made(case: dict[str, Any], **changes: Any) -> Any:
    return chain(ClusterConfig.model_validate(case), **{"variables": (("HF_ENDPOINT", "https://hub"),), **changes})


def schema() -> dict[str, Any]:
    """The definition as a schema that admits nothing it does not name, but for pods and what all resources have."""
    definition = yaml.safe_load(DEFINITION.read_text("utf-8"))
    found: dict[str, Any] = definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    return closed(found)


def closed(part: dict[str, Any]) -> dict[str, Any]:
    if "properties" in part:
        part["additionalProperties"] = False
        for inner in part["properties"].values():
            closed(inner)
    if "items" in part:
        closed(part["items"])
    return part


@pytest.mark.parametrize("name", CASES)
def test_a_manifest_is_that_of_the_golden_file(name: str, is_golden: Callable[[str, str], None]) -> None:
    (text,) = {text for _, text in render(made(CASES[name])).values()}
    is_golden(f"kubernetes_{name}.yaml", text)


@pytest.mark.parametrize("name", CASES)
def test_a_manifest_is_valid_and_so_is_only_what_is(name: str) -> None:
    resource = manifest(made(CASES[name]))
    jsonschema.validate(resource, schema())
    cluster = resource["spec"]["rayClusterSpec"]
    for place, mistake in (
        (resource["spec"], {"entrypont": "x"}),
        (resource["spec"], {"ttlSecondsAfterFinished": "600"}),
        (cluster, {"authOptions": {"mode": "tokens"}}),
        (cluster["workerGroupSpecs"][0], {"replicas": 1.5}),
        (cluster["headGroupSpec"], {"rayStartParams": {"num-cpus": 0}}),
    ):
        before = dict(place)
        place.update(mistake)
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(resource, schema())
        place.clear()
        place.update(before)
    del cluster["workerGroupSpecs"][0]["groupName"]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(resource, schema())


@pytest.mark.parametrize("name", CASES)
def test_a_manifest_keeps_to_the_rules_of_the_controller(name: str) -> None:
    """Those of its `validation.go` that are not in the schema."""
    resource = manifest(made(CASES[name], name="a" * 38))
    spec = resource["spec"]
    cluster = spec["rayClusterSpec"]
    assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", resource["metadata"]["name"])
    assert len(resource["metadata"]["name"]) == 47
    assert spec["shutdownAfterJobFinishes"] and spec["ttlSecondsAfterFinished"] >= 0  # suspend and ttl ask for it
    assert "submitterPodTemplate" not in spec and "submitterConfig" not in spec  # SidecarMode has no such pod
    assert cluster["headGroupSpec"]["template"]["spec"]["restartPolicy"] == "Never"
    assert cluster["authOptions"] == {"mode": "token"} and cluster["rayVersion"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        assert len(group["template"]["spec"]["containers"]) == 1
        assert "resources" not in group and "labels" not in group["rayStartParams"]
    assert all(0 < group["minReplicas"] <= group["maxReplicas"] for group in cluster["workerGroupSpecs"])
    assert ("suspend" in spec) == ("kueue.x-k8s.io/queue-name" in resource["metadata"]["labels"])


def test_what_is_secret_is_in_it_by_name_only(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_API_KEY", "HF_TOKEN"):
        monkeypatch.setenv(name, "planted")
    text = plain_yaml(manifest(made(CASES["gpus"])))
    assert "planted" not in text
    pods = [group["template"]["spec"] for group in groups(yaml.safe_load(text))]
    assert [pod["containers"][0]["envFrom"] for pod in pods] == [[{"secretRef": {"name": "keys"}}]] * 2


def groups(resource: dict[str, Any]) -> list[dict[str, Any]]:
    cluster = resource["spec"]["rayClusterSpec"]
    return [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]


CPUS = CASES["cpus"]["kubernetes"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"kubernetes": {"claim": "runs"}}, "cluster.kubernetes.image is missing"),
        ({"kubernetes": {"image": "tune"}}, "cluster.kubernetes.claim is missing"),
        (
            {"variables": {"RAY_AUTH_MODE": "disabled"}},
            "cluster.variables.RAY_AUTH_MODE: KubeRay sets it or refuses it",
        ),
        ({"variables": {"RAY_REDIS_ADDRESS": "redis:6379"}}, "cluster.variables.RAY_REDIS_ADDRESS"),
        ({"gpus_per_node": 8, "cpus_per_rank": 4}, "8 ranks on a node take 32, so that training would wait for ever"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        manifest(made({"kubernetes": CPUS, **changes}))


@pytest.mark.parametrize(
    ("name", "better"),
    [("My_Run.2", "my-run-2"), ("2nd-try", "nd-try"), ("a-", "a"), ("a" * 39, "a" * 38), ("007", "run")],
)
def test_a_name_that_kubernetes_does_not_take_is_refused_with_one_that_it_does(name: str, better: str) -> None:
    with pytest.raises(UserError, match=f"give name={better}$"):
        manifest(made(CASES["cpus"], name=name))
    manifest(made(CASES["cpus"], name=better))


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("ray_version", "2.51.9", "before Ray 2.52 anybody who reaches the cluster may use it"),
        ("ray_version", "nightly", 'written as "2.60.0"'),
        ("ttl", -1, "greater than or equal to 0"),
        ("ttl", 2**31, "less than or equal"),
        ("shared_memory", "64Gi", "part of memory"),
        ("memory", "64G", "written as 64Gi"),
        ("queue", "gpus ", "begins and ends with a letter or digit"),
        ("namespace", "Research", "a-z, 0-9 and -"),
        ("mounts", {"data": "/runs"}, "cannot be one folder"),
        ("mounts", {"runs": "/data"}, "is `claim` already"),
        ("mounts", {"data": "data"}, "absolute path"),
        ("node_selector", {"a/b/c": "x"}, "a-z, 0-9, - and ."),
        ("image", "tune:1; rm", "the name of an image"),
    ],
)
def test_values_that_kubernetes_does_not_take_are_refused(key: str, value: Any, said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        ClusterConfig.model_validate({"kubernetes": {**CPUS, key: value}})


def test_a_sweep_is_refused() -> None:
    with pytest.raises(UserError, match="--sweep needs a scheduler with arrays"):
        manifest(made(CASES["cpus"], runs=2))


KEYS = ("image", "namespace", "claim", "runs", "secret", "service_account", "queue", "memory", "ray_version")


@settings(max_examples=200, deadline=None)
@given(value=HOSTILE, key=st.sampled_from(KEYS))
def test_a_hostile_setting_is_refused_or_is_only_what_it_is(value: str, key: str) -> None:
    try:
        case = {"kubernetes": {**CPUS, "shared_memory": "1Mi", key: value}}
        resource = manifest(made(case))
    except (ValidationError, UserError):
        return
    jsonschema.validate(resource, schema())
    words = shlex.split(resource["spec"]["entrypoint"])
    assert words[:3] == ["python", "-m", "launcher.ray_driver"] and len(words) == 8
    assert re.fullmatch(r"[a-zA-Z0-9./_,@: -]+", resource["spec"]["entrypoint"])  # nothing for `$(…)` of Kubernetes


@settings(max_examples=200, deadline=None)
@given(values=st.lists(st.one_of(HOSTILE, st.text(min_size=1, max_size=8)), min_size=2, max_size=2))
def test_variables_arrive_as_they_are(values: list[str]) -> None:
    try:
        cluster = ClusterConfig.model_validate({**CASES["cpus"], "variables": {"ONE": values[0], "TWO": values[1]}})
    except ValidationError:
        return
    resource = yaml.safe_load(plain_yaml(manifest(chain(cluster))))
    for group in groups(resource):
        found = {each["name"]: each["value"] for each in group["template"]["spec"]["containers"][0]["env"]}
        assert [expanded(found["ONE"]), expanded(found["TWO"])] == values


def expanded(value: str) -> str:
    """What Kubernetes makes of a value where no variable is known: `$$` is `$`, and nothing else may be left to it."""
    assert "$" not in value.replace("$$", "")
    return value.replace("$$", "$")


@given(st.text(min_size=1, max_size=6))
def test_texts_are_texts_to_every_reader_of_yaml(text: str) -> None:
    """Go's readers take `y` for true and 1e3 for a number, which Python's do not."""
    written = plain_yaml({"key": text}).removeprefix("key: ").removesuffix("\n")
    assert yaml.safe_load(f"key: {written}") == {"key": text}
    assert written.startswith('"') or re.fullmatch(r"[A-Za-z/][\w/.-]+", written, re.ASCII)


def test_only_the_stages_that_are_asked_for_are_done() -> None:
    cluster = ClusterConfig.model_validate(CASES["cpus"])
    resource = manifest(chain(cluster, jobs=jobs_of(cluster, ("prepare", "train"), 1, lead=300)))
    assert resource["spec"]["entrypoint"].endswith("--runs /runs --stages prepare,train")


def test_the_version_of_ray_is_the_one_that_is_tested() -> None:
    pinned = re.search(r"^ray==(.*)$", (GOLDEN.parents[2] / "constraints.txt").read_text("utf-8"), re.MULTILINE)
    assert pinned and ClusterConfig().kubernetes.ray_version == pinned[1]
