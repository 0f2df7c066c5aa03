"""The images and the composition: as far as that can be known without building them."""

import json
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import setuptools
import yaml
from compose_spec import PyCompose

from tests.docker.rules import ROOT, compose_problems, image_problems, in_context, instructions

DOCKERFILES = sorted((ROOT / "docker").glob("*.Dockerfile"))
COMPOSE = ROOT / "docker" / "compose.yaml"


@pytest.fixture(scope="module")
def setup() -> dict[str, Any]:
    """What `setup.py` says."""
    said: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(setuptools, "setup", said.update)
        runpy.run_path(str(ROOT / "setup.py"))
    return said


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.stem)
def test_an_image_keeps_to_the_rules(dockerfile: Path, setup: dict[str, Any]) -> None:
    assert list(image_problems(dockerfile.read_text(encoding="utf-8"), set(setup["extras_require"]))) == []
    copied = {word.rstrip("/") for _, rest in instructions(dockerfile.read_text("utf-8")) for word in rest.split()}
    assert {package.split(".")[0] for package in setup["packages"]} <= copied


def test_hadolint_has_nothing_to_say() -> None:
    assert len(DOCKERFILES) == 2
    hadolint = Path(sys.executable).parent / "hadolint"
    done = subprocess.run([str(hadolint), *map(str, DOCKERFILES)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("good", "bad", "problem"),
    [
        ("python:3.11.13-slim-bookworm AS", "python:3.11 AS", "python:3.11 is no version"),
        ("python:3.11.13-slim-bookworm AS", "python AS", "python is no version"),
        ("\nUSER 1000:1000", "", "it runs as root"),
        ("USER 1000:1000", "USER root", "it runs as root"),
        ("ENV PATH", "ENV HF_TOKEN=hf_x PATH", "HF_TOKEN may be a secret"),
        ("WORKDIR /source", "ARG WANDB_API_KEY\nWORKDIR /source", "WANDB_API_KEY may be a secret"),
        ("COPY sft sft/", "COPY soft sft/", "soft is not there"),
        ("COPY sft sft/", "COPY tests tests/", ".dockerignore leaves out tests"),
        ("--from=build", "--from=built", "there is no stage built"),
        ("--constraint constraints.txt", "", "pip installs what it likes"),
        ("prepare,train", "prepare,trian", "setup.py has no extra trian"),
    ],
)
def test_mistakes_in_an_image_are_found(good: str, bad: str, problem: str, setup: dict[str, Any]) -> None:
    for dockerfile in DOCKERFILES:
        text = dockerfile.read_text(encoding="utf-8")
        assert good in text
        assert problem in list(image_problems(text.replace(good, bad), set(setup["extras_require"])))


def test_what_is_secret_or_large_stays_out_of_an_image() -> None:
    for name in (".git", ".git/config", "runs", "runs/x/lock.json", ".env", ".venv", "tests", "docker/token", "shared"):
        assert not in_context(name), name
    for name in ("launcher/cli.py", "configs/recipes/quickstart.yaml", "docker/ray-node.sh"):
        assert in_context(name), name
    assert not in_context("launcher/__pycache__")


def test_every_extra_is_pinned(setup: dict[str, Any]) -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {normal(line.partition("==")[0]) for line in lines if "==" in line}
    asked = [*setup["install_requires"], *(name for names in setup["extras_require"].values() for name in names)]
    assert {normal(re.split(r"[\[<>=!~]", name)[0]) for name in asked} <= pinned


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_what_an_image_is_built_from_is_all_that_the_build_needs(tmp_path: Path) -> None:
    """The stage that builds, but for the packages of others, which are those of this environment."""
    stage = re.split(r"^FROM ", DOCKERFILES[0].read_text(encoding="utf-8"), flags=re.MULTILINE)[1]
    for word, rest in instructions(stage):
        if word == "COPY":
            *sources, target = rest.split()
            for source in sources:
                copy(ROOT / source, tmp_path / target)
    installed = tmp_path / "installed"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--target"]
    subprocess.run([*command, str(installed), "."], cwd=tmp_path, check=True)
    script = "import launcher, launcher.cli; print(launcher.__file__); launcher.cli.main(['quickstart', '--help'])"
    environment = {"PYTHONPATH": str(installed), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, cwd="/", capture_output=True, text=True, check=False
    )
    assert done.stdout.startswith(str(installed)), done.stderr
    for name in ("configs/recipes/quickstart.yaml", "slurm/train.sh", "data_tools/inspect.jinja"):
        assert (installed / name).exists(), name


def copy(source: Path, target: Path) -> None:
    """As COPY does."""
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        shutil.copy(source, target)


def composition(**variables: str) -> dict[str, Any]:
    """The composition, with variables replaced as `docker compose` does."""
    text = re.sub(
        r"\$\{(\w+):-([^}]*)\}", lambda match: variables.get(match[1], match[2]), COMPOSE.read_text(encoding="utf-8")
    )
    found: dict[str, Any] = yaml.safe_load(text)
    return found


def test_the_composition_is_valid_and_keeps_to_the_rules() -> None:
    found = composition()
    PyCompose.from_json(json.dumps(found))
    assert list(compose_problems(found)) == []
    assert found["services"]["worker"]["deploy"]["replicas"] == 2
    build = found["services"]["head"]["build"]
    assert (COMPOSE.parent / build["context"]).resolve() == ROOT
    assert (ROOT / build["dockerfile"]).is_file()
    assert found["services"]["head"]["command"][0] == "ray-node"
    assert (COMPOSE.parent / found["services"]["head"]["volumes"][2].split(":")[0]).is_dir()


@pytest.mark.parametrize(
    ("service", "key", "value", "problem"),
    [
        ("head", "ports", ["8265:8265"], "8265:8265 is open to the network"),
        ("head", "environment", {"RAY_ADDRESS": "head:6379"}, "anybody may use this Ray"),
        ("worker", "environment", {"WANDB_API_KEY": "x"}, "WANDB_API_KEY may be a secret"),
        ("worker", "volumes", ["run:/runs"], "there is no volume run"),
        ("worker", "privileged", True, "it has more rights than it needs"),
    ],
)
def test_mistakes_in_a_composition_are_found(service: str, key: str, value: Any, problem: str) -> None:
    found = composition()
    found["services"][service] = {**found["services"][service], key: value}
    assert f"{service}: {problem}" in list(compose_problems(found))


@pytest.mark.parametrize(
    ("mistake", "said"),
    [
        ({"prots": []}, "prots"),
        ({"shm_size": "many"}, "`many` contains an unknown unit"),
        ({"depends_on": {"head": {"condition": "up"}}}, "unknown variant `up`"),
    ],
)
def test_what_is_no_composition_is_refused(mistake: dict[str, Any], said: str) -> None:
    found = composition()
    found["services"]["worker"] = {**found["services"]["worker"], **mistake}
    with pytest.raises(ValueError, match=said):
        PyCompose.from_json(json.dumps(found))
