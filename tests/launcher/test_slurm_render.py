"""Scripts for sbatch: as the golden files, valid bash, and nothing in a configuration can become a command."""

import os
import subprocess
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from data_tools.errors import UserError
from launcher.backends import slurm_script
from launcher.cluster import ClusterConfig
from tests.launcher.chains import HOSTILE, chain

CASES: dict[str, dict[str, Any]] = {
    "gpus": {
        "nodes": 4,
        "gpus_per_node": 8,
        "cpus_per_rank": 12,
        "partition": "gpu",
        "account": "proj-7",
        "memory": "0",
        "network": "ib",
        "modules": ("cuda/12.8", "gcc"),
        "options": ("--licenses=lustre",),
        "variables": {"NCCL_DEBUG": "WARN", "NOTE": "it's $(here); `now`"},
    },
    "gres_and_array": {
        "nodes": 2,
        "gpus_per_node": 4,
        "gpu_flag": "gres",
        "gpu_type": "a100",
        "time": "2-00:00:00",
        "environment": {"venv": "/shared/venvs/tune"},
        "prepare": {"how": "array", "tasks": 6, "partition": "cpu", "memory": "32G"},
        "array_limit": 3,
    },
    "pyxis": {
        "gpus_per_node": 8,
        "container": {"engine": "pyxis", "image": "/images/tune.sqsh", "mounts": ("/data",)},
        "network": "efa",
    },
    "apptainer_and_ray": {
        "gpus_per_node": 4,
        "container": {"engine": "apptainer", "image": "/images/tune.sif", "mounts": ("/data:/mnt",)},
        "prepare": {"how": "ray", "nodes": 3},
    },
    "docker": {"gpus_per_node": 1, "container": {"engine": "docker", "image": "tune:1"}},
    "conda": {"environment": {"conda": "tune"}, "network": "slingshot", "fetch": "job"},
}


def head(script: str) -> str:
    """Options and settings, without the body."""
    return script.partition("RENDERED=yes")[0]


@pytest.mark.parametrize("name", CASES)
def test_scripts_are_those_of_the_golden_file(name: str, is_golden: Callable[[str, str], None]) -> None:
    cluster = ClusterConfig.model_validate(CASES[name])
    scripts = slurm_script.render(chain(cluster, runs=3 if name == "gres_and_array" else 1))
    text = "\n".join(f"── {file}\n{head(script)}" for file, script in scripts.values())
    is_golden(f"slurm_{name}.txt", text)


@pytest.mark.parametrize("name", CASES)
def test_scripts_end_with_their_bodies_and_are_bash(name: str, tmp_path: Path) -> None:
    cluster = ClusterConfig.model_validate(CASES[name])
    made = chain(cluster)
    for job in made.jobs:
        script = slurm_script.render_job(made, job)
        assert script.endswith((slurm_script.BODIES / f"{job.body}.sh").read_text("utf-8"))
        file = tmp_path / "script"
        file.write_text(script, "utf-8")
        assert subprocess.run(["bash", "-n", file], capture_output=True, check=False).stderr == b""


def test_the_limit_and_the_signal_belong_to_training_alone() -> None:
    made = chain(ClusterConfig(gpus_per_node=1))
    scripts = {stage: text for stage, (_, text) in slurm_script.render(made).items()}
    assert "--signal=B:USR1@300" in scripts["train"]
    assert not any("--signal" in scripts[stage] for stage in ("prepare", "export"))


@settings(max_examples=150, deadline=None)
@given(value=HOSTILE, key=st.sampled_from(["partition", "account", "constraint", "exclude", "gpu_type", "memory"]))
def test_what_becomes_an_option_is_a_word_or_refused(value: str, key: str) -> None:
    try:
        cluster = ClusterConfig.model_validate({key: value, "gpus_per_node": 1})
    except ValidationError:
        return
    for line in head(slurm_script.render_job(made := chain(cluster), made.jobs[1])).splitlines():
        if line.startswith("#SBATCH"):
            assert len(line.split()) == 2, line


@settings(max_examples=60, deadline=None)
@given(values=st.lists(HOSTILE, min_size=5, max_size=5))
def test_nothing_in_the_settings_runs(values: list[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    """The settings of a script, run by bash, say what was configured, and nothing else happens."""
    folder = tmp_path_factory.mktemp("hostile")
    clean = [value.replace("\x00", "") or "x" for value in values]
    sections = {
        "variables": {"ONE": clean[0]},
        "environment": {"venv": clean[1]},
        "secrets": clean[2],
        "container": {"engine": "apptainer", "image": clean[3]},
    }
    try:
        cluster = ClusterConfig.model_validate(sections)
    except ValidationError:
        return
    made = chain(cluster, variables=(("TWO", clean[4]),))
    script = folder / "script"
    text = head(slurm_script.render_job(made, made.jobs[1]))
    script.write_text(text + '\nprintf "%s\\0" "$ONE" "$TWO" "$SECRETS" "${PYTHON[@]}"\n', "utf-8")
    done = subprocess.run(["/bin/bash", script], cwd=folder, capture_output=True, check=True, env={"PATH": "/nowhere"})
    said = done.stdout.decode("utf-8").split("\0")
    secrets = os.path.expanduser(cluster.secrets) if "/" in cluster.secrets else cluster.secrets  # noqa: PTH111
    assert said[:3] == [cluster.variables["ONE"], clean[4], secrets]
    assert cluster.container is not None
    assert cluster.container.image in said
    assert done.stderr == b""
    assert list(folder.iterdir()) == [script]


def test_docker_gets_the_secrets_by_name_and_writes_as_who_launched(tmp_path: Path) -> None:
    """The image's command is what bash would run; the values are in its environment alone."""
    home = tmp_path / "home"
    home.mkdir()
    (home / "secrets.env").write_text("MLFLOW_TRACKING_TOKEN=5ecret 'value'\n# HF_TOKEN=\nHF_TOKEN=a=b\n")
    (home / "secrets.env").chmod(0o600)
    (tmp_path / "run.yaml").write_text("")
    cluster = ClusterConfig.model_validate({**CASES["docker"], "secrets": "~/secrets.env"})
    made = chain(cluster, folder=str(tmp_path))
    common = (slurm_script.BODIES / "common.sh").read_text("utf-8")
    script = tmp_path / "script"
    said = 'printf "%s\\0" "${PYTHON[@]}"; env -0 | grep -z ^MLFLOW'
    script.write_text(f"{head(slurm_script.render_job(made, made.jobs[1]))}\n{common}\n{said}\n", "utf-8")
    environment = {"PATH": os.environ["PATH"], "HOME": str(home)}
    done = subprocess.run(["/bin/bash", script], capture_output=True, text=True, check=True, env=environment)
    words = done.stdout.split("\0")
    assert words[:2] == ["docker", "run"]
    assert f"{os.getuid()}:{os.getgid()}" in words
    names = [name for option, name in pairwise(words) if option == "--env"]
    assert {"MLFLOW_TRACKING_TOKEN", "HF_TOKEN", "RANK"} <= set(names)
    assert words.index("tune:1") > words.index("HF_TOKEN")
    assert words[-2] == "MLFLOW_TRACKING_TOKEN=5ecret 'value'"
    assert "5ecret" not in "".join(words[:-2])


@pytest.mark.parametrize("folder", ["/a b/runs/x", "/a\nb/runs/x", "/a%j/runs/x", '/a"b/x', "/a#b/x", "/a\\b/x"])
def test_a_path_that_an_option_cannot_have_is_refused(folder: str) -> None:
    with pytest.raises(UserError, match="which sbatch cannot take"):
        slurm_script.render(chain(ClusterConfig(), folder=folder))


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("--output=/tmp/x", "--output is set by shardtune itself"),
        ("licenses=a", "is not written as --name=value"),
        ("--export=ALL", "--export is set by shardtune itself"),
        ("-p", "is not written as --name=value"),
    ],
)
def test_options_that_jobs_depend_on_are_refused(option: str, said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        ClusterConfig(options=(option,))


@pytest.mark.parametrize("time", ["UNLIMITED", "24", "24:00", "1-1", "0:60:00", "infinite", ""])
def test_a_time_limit_is_hours_minutes_and_seconds(time: str) -> None:
    with pytest.raises(ValidationError, match="HH:MM:SS"):
        ClusterConfig(time=time)


def test_a_time_that_yaml_made_a_number_is_explained() -> None:
    with pytest.raises(ValidationError, match="write it as"):
        ClusterConfig.model_validate({"time": 86400})
