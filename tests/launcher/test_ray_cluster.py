"""The YAML of `ray up`: as the golden files, valid to the Ray that is installed, safe where Ray's defaults are not."""

import json
import shlex
import subprocess
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
from launcher.cli import main
from launcher.cluster import ClusterConfig
from launcher.plain_yaml import plain_yaml
from launcher.ray_cluster import Provider, ray_cluster
from tests.launcher.chains import GOLDEN, HOSTILE

TOKEN = "/home/me/.ray/auth_token"
AWS = {"region": "us-east-1", "machine": "p5.48xlarge", "token": TOKEN}
GCP = {
    **AWS,
    "zone": "us-central1-a",
    "project": "p-7",
    "machine": "a3-highgpu-8g",
    "image": "projects/p/global/images/i",
}
CASES: dict[str, tuple[Provider, dict[str, Any]]] = {
    "aws": ("aws", {"nodes": 4, "gpus_per_node": 8, "cpus_per_rank": 8, "cloud": AWS}),
    "aws_spot_docker": (
        "aws",
        {
            "nodes": 2,
            "gpus_per_node": 1,
            "cloud": {
                **AWS,
                "name": "tune",
                "zone": "us-east-1a",
                "image": "ami-0123456789abcdef0",
                "head_machine": "m7i.2xlarge",
                "spot": True,
                "docker": "registry.example/shardtune-gpu:0.1",
                "setup": ["sudo mount -t nfs4 'fs-1.example:/' /shared"],
            },
        },
    ),
    "gcp": ("gcp", {"gpus_per_node": 8, "cloud": {**GCP, "region": "us-central1", "spot": True}}),
    "gcp_cpus": ("gcp", {"nodes": 3, "ranks_per_node": 2, "cloud": {**GCP, "machine": "n2-standard-16"}}),
}


def made(name: str) -> dict[str, Any]:
    provider, case = CASES[name]
    return ray_cluster(ClusterConfig.model_validate(case), provider)


@pytest.mark.parametrize("name", CASES)
def test_the_yaml_is_that_of_the_golden_file(name: str, is_golden: Callable[[str, str], None]) -> None:
    text = plain_yaml(made(name))
    is_golden(f"ray_{name}.yaml", text)


@pytest.mark.parametrize("name", CASES)
def test_ray_takes_it_as_it_is_and_adds_nothing_that_is_open(name: str) -> None:
    """By Ray's own code, up to where it would ask the cloud."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    rendered = yaml.safe_load(plain_yaml(made(name)))
    validate_config(rendered)  # with ray-schema.json of the Ray that is installed
    prepared = prepare_config(rendered)
    validate_config(prepared)
    assert prepared["available_node_types"].keys() == {"head", "node"}
    node = prepared["available_node_types"]["node"]
    assert node["min_workers"] == node["max_workers"] == prepared["max_workers"] == CASES[name][1].get("nodes", 1)
    commands = [command for key in prepared if key.endswith("_commands") for command in prepared[key]]
    assert not any("0.0.0.0" in command or "nightly" in command or "ray-wheels" in command for command in commands)
    starts = [command for command in commands if "ray start" in command]
    assert len(starts) == 2 and all("RAY_AUTH_MODE=token " in start for start in starts)
    assert "--dashboard-host=127.0.0.1" in starts[0]
    assert prepared["file_mounts"] == {"~/.ray/auth_token": TOKEN}


@pytest.mark.parametrize("name", CASES)
def test_its_commands_are_bash_and_may_be_run_again(name: str, tmp_path: Path) -> None:
    rendered = made(name)
    for key in rendered:
        for command in rendered[key] if key.endswith("_commands") else []:
            subprocess.run(["bash", "-n", "-c", command], check=True)
    (last,) = (command for command in rendered["setup_commands"] if ".bashrc" in command)
    for _ in range(2):
        subprocess.run(["bash", "-c", last], env={"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}, check=True)
    (line,) = (tmp_path / ".bashrc").read_text("utf-8").splitlines()
    assert line.startswith('export PATH="') and line.endswith('shardtune/bin:$PATH"')


@pytest.mark.parametrize(
    "mistake", [{"max_worker": 1}, {"max_workers": "2"}, {"setup_commands": "pip"}, {"auth": {"x": 1}}]
)
def test_what_is_wrong_is_refused_by_the_same_code(mistake: dict[str, Any]) -> None:
    from ray.autoscaler._private.util import validate_config

    with pytest.raises(jsonschema.ValidationError):
        validate_config({**made("aws"), **mistake})


@settings(max_examples=150, deadline=None)
@given(value=HOSTILE, key=st.sampled_from(["name", "region", "zone", "machine", "head_machine", "ssh_user", "docker"]))
def test_a_hostile_name_is_refused(value: str, key: str) -> None:
    try:
        cluster = ClusterConfig.model_validate({"cloud": {**AWS, key: value}})
    except ValidationError:
        return
    assert not set(value) & set("'\"\\\n;$(){}|&<>`# \t*?~%!=,")
    assert plain_yaml(ray_cluster(cluster, "aws"))


@settings(max_examples=150, deadline=None)
@given(wanted=st.lists(HOSTILE, min_size=1, max_size=3))
def test_what_pip_is_given_is_words_to_a_shell(wanted: list[str]) -> None:
    try:
        cluster = ClusterConfig.model_validate({"cloud": {**AWS, "install": wanted}})
    except ValidationError:
        return
    rendered = yaml.safe_load(plain_yaml(ray_cluster(cluster, "aws")))
    (command,) = (command for command in rendered["setup_commands"] if "pip install" in command)
    assert shlex.split(command)[5:] == wanted


@pytest.fixture
def profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A profile with a token."""
    monkeypatch.chdir(tmp_path)
    token = tmp_path / "token"
    token.touch(0o600)
    token.write_text("planted", "utf-8")
    values = {"nodes": 2, "gpus_per_node": 8, "cloud": {**AWS, "token": str(token)}}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(values), "utf-8")
    return "mine.yaml"


def test_the_command_writes_it_once(profile: str, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["cluster", "render", "aws", profile]
    assert main([*command, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out.splitlines()[-1])
    text = Path(facts["file"]).read_text("utf-8")
    assert yaml.safe_load(text)["max_workers"] == 2
    assert "planted" not in text
    assert main(command) == 0
    assert main([*command, "cluster.nodes=3"]) == 1
    assert "ray-aws.yaml is there and says something else" in capsys.readouterr().err
    assert main([*command, "cluster.nodes=3", "--output", "three.yaml"]) == 0
    assert yaml.safe_load(Path("three.yaml").read_text("utf-8"))["max_workers"] == 3


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("gcp", "mine.yaml"), "cluster.cloud.zone is missing; for example cluster.cloud.zone=us-central1-a"),
        (("aws", "mine.yaml", "cluster.cloud.machine=null"), "cluster.cloud.machine is missing"),
        (("aws", "mine.yaml", "cluster.cloud.token=nowhere"), "so that anybody could use the cluster; make it"),
        (("aws", "mine.yaml", "cluster.cloud.regoin=x"), "did you mean"),
        (("azure", "mine.yaml"), "invalid choice: 'azure'"),
        (("aws", "other"), "there is no cluster profile other"),
    ],
)
def test_mistakes_are_one_line(
    arguments: tuple[str, ...], said: str, profile: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["cluster", "render", *arguments]) in (1, 2)
    error = capsys.readouterr().err
    assert said in " ".join(error.split())
    assert error.count("error:") == 1
    assert not list(Path().glob("ray-*.yaml"))


def test_a_token_that_others_can_read_is_refused(profile: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("token").chmod(0o644)
    assert main(["cluster", "render", "aws", profile]) == 1
    assert "run chmod 600 on it" in capsys.readouterr().err


def test_what_is_needed_differs_between_clouds() -> None:
    with pytest.raises(UserError, match=r"cluster.cloud.project is missing"):
        ray_cluster(ClusterConfig.model_validate({"cloud": {**AWS, "zone": "z"}}), "gcp")


def test_the_version_of_ray_is_the_one_that_is_tested() -> None:
    pins = (GOLDEN.parents[2] / "constraints.txt").read_text("utf-8").splitlines()
    assert ClusterConfig().cloud.install[1] in pins
