"""`shardtune launch --on hf-jobs`: the real client against jobs on loopback, which run what they are asked for."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from data_tools.errors import UserError
from launcher.backends.hf_jobs import render, request
from launcher.cli import main
from launcher.cluster import ClusterConfig
from launcher.environment import packed_files
from tests.conftest import chats, write_jsonl
from tests.launcher.chains import HOSTILE, chain
from tests.launcher.commands import error, run
from tests.launcher.jobs_server import ROOT, TOKEN, Jobs, serving_jobs

HF = {"image": "registry.example/shardtune-gpu:0.1", "flavor": "cpu-basic", "bucket": "me/runs"}
CASES: dict[str, dict[str, Any]] = {
    "cpus": {"hf_jobs": HF},
    "gpus": {
        "gpus_per_node": 8,
        "time": "2-00:00:00",
        "fetch": "job",
        "variables": {"NOTE": "it's $(here); `now`"},
        "hf_jobs": {
            **HF,
            "flavor": "a100x8",
            "runs": "/data/runs",
            "namespace": "my-team",
            "secrets": ("HF_TOKEN", "WANDB_API_KEY"),
            "attempts": 5,
        },
    },
}


@pytest.mark.parametrize("name", CASES)
def test_a_request_is_that_of_the_golden_file(name: str, is_golden: Callable[[str, str], None]) -> None:
    cluster = ClusterConfig.model_validate(CASES[name])
    (text,) = {text for _, text in render(chain(cluster, variables=(("HF_ENDPOINT", "https://hub"),))).values()}
    is_golden(f"hf_jobs_{name}.json", text)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"hf_jobs": {}}, "cluster.hf_jobs.image is missing"),
        ({"hf_jobs": {**HF, "flavor": None}}, "cluster.hf_jobs.flavor is missing"),
        ({"hf_jobs": {**HF, "bucket": None}}, "cluster.hf_jobs.bucket is missing"),
        ({"nodes": 2, "hf_jobs": HF}, "a Hugging Face Job is one machine; set cluster.nodes=1"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        request(chain(ClusterConfig.model_validate(changes)))


def test_a_sweep_is_refused() -> None:
    with pytest.raises(UserError, match="--sweep needs a scheduler with arrays"):
        request(chain(ClusterConfig.model_validate(CASES["cpus"]), runs=2))


@settings(max_examples=150, deadline=None)
@given(value=HOSTILE, key=st.sampled_from(["image", "flavor", "bucket", "runs", "namespace"]))
def test_a_hostile_name_is_refused_and_commands_are_lists(value: str, key: str) -> None:
    try:
        cluster = ClusterConfig.model_validate({"hf_jobs": {**HF, key: value}})
    except ValidationError:
        return
    assert len(request(chain(cluster))["command"]) == 11  # none of them goes through a shell
    assert not set(value) & set("'\"\\\n;$(){}|&<>`# \t*?~%!=,\u2028\x00")


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run whose function is a module here."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    write_jsonl(tmp_path / "chats.jsonl", chats(120))
    (tmp_path / "rows.py").write_text("def chat(row):\n    return row\n", "utf-8")
    small = {"architecture": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    values = {
        "name": "onhf",
        "model": {"config": {**small, "num_attention_heads": 2, "max_position_embeddings": 512}},
        "data": {
            "sources": [{"path": "chats.jsonl", "function": "rows:chat"}],
            "tokenizer": {"vocab_size": 300},
            "max_length": 512,
            "actors": 0,
        },
        "train": {"packs_per_step": 2, "max_steps": 3, "zero": {"stage": 0}},
        "evaluate": {"samples": [], "on_start": False},
        "cluster": {
            "secrets": str(tmp_path / "secrets.env"),
            "hf_jobs": {**HF, "runs": f"{tmp_path}/bucket", "secrets": ["WANDB_API_KEY"]},
        },
    }
    (tmp_path / "secrets.env").write_text("WANDB_API_KEY=planted\n", "utf-8")
    (tmp_path / "secrets.env").chmod(0o600)
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(values), "utf-8")
    return path


@pytest.fixture
def jobs(config: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[Jobs]:
    """Jobs that run, or, with a parameter, that only wait."""
    folder = config.parent / "machine"
    folder.mkdir()
    with serving_jobs(folder, runs=not hasattr(request, "param")) as served:
        monkeypatch.setenv("HF_ENDPOINT", served.url)
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", served.url)
        yield served


waiting = pytest.mark.parametrize("jobs", ["waiting"], indirect=True)


@pytest.mark.slow
def test_a_run_is_launched_followed_and_done(jobs: Jobs, config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stages = ("--stages", "prepare,train,export")
    facts = run(capsys, "launch", config, "--on", "hf-jobs", *stages)
    assert [job["stage"] for job in facts["jobs"]] == ["prepare", "train", "export"]
    assert run(capsys, "launch", config, "--on", "hf-jobs", *stages) == facts
    assert len(jobs.containers) == 1
    deadline = time.monotonic() + 120
    while "COMPLETED" not in (found := {look["state"] for look in run(capsys, "status", "onhf")["jobs"]}):
        assert time.monotonic() < deadline and "ERROR" not in found, main(["logs", "onhf"])
        time.sleep(0.5)
    assert main(["logs", "onhf", "--follow"]) == 0
    said = capsys.readouterr().out
    assert "── prepare" in said and "trained 3 steps" in said and "exported" in said
    run_folder = config.parent / "bucket" / "onhf"
    assert (run_folder / "model" / "model.safetensors").exists()
    (asked,) = [each.asked for each in jobs.containers.values()]
    assert asked["secrets"] == {"WANDB_API_KEY": "planted"}
    assert asked["timeoutSeconds"] == (4 + 24 + 4) * 3600
    others = [path for path in config.parent.rglob("*") if path.is_file() and path.name != "secrets.env"]
    assert not [path for path in others if b"planted" in path.read_bytes()]
    assert "planted" not in json.dumps({**asked, "secrets": None})


@waiting
def test_a_job_is_found_again_and_cancelled(jobs: Jobs, config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    facts = run(capsys, "launch", config, "--on", "hf-jobs")
    assert [job["stage"] for job in facts["jobs"]] == ["fetch", "prepare", "train", "export"]
    (config.parent / "runs" / "onhf" / "jobs" / "jobs.json").unlink()  # as if it was cut off before it was noted
    assert run(capsys, "launch", config, "--on", "hf-jobs") == facts
    assert len(jobs.containers) == 1
    assert "of another configuration" in error(capsys, "launch", config, "--on", "hf-jobs", "train.max_steps=4")
    assert "has no output yet" in error(capsys, "logs", "onhf")
    assert run(capsys, "cancel", "onhf")["cancelled"] == [facts["jobs"][0]["id"]]
    assert {look["state"] for look in run(capsys, "status", "onhf")["jobs"]} == {"CANCELED"}
    run(capsys, "launch", config, "--on", "hf-jobs")
    assert len(jobs.containers) == 2
    jobs.containers.clear()
    assert {look["state"] for look in run(capsys, "status", "onhf")["jobs"]} == {"UNKNOWN"}


@waiting
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("cluster.hf_jobs.flavor=h900",), "the hub has cpu-basic, a10g-largex2; nothing was submitted"),
        (
            ("cluster.hf_jobs.flavor=a10g-largex2",),
            "cluster.gpus_per_node=0: a10g-largex2 has 2; nothing was submitted",
        ),
        (("cluster.gpus_per_node=1",), "cluster.gpus_per_node=1: cpu-basic has 0; nothing was submitted"),
        (("cluster.hf_jobs.secrets=[MY_KEY]",), "there is no MY_KEY, neither in"),
        (("cluster.hf_jobs.namespace=others",), "status 403: You may not see these jobs"),
    ],
)
def test_mistakes_are_one_line_and_nothing_is_submitted(
    arguments: tuple[str, ...], said: str, jobs: Jobs, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said in error(capsys, "launch", config, "--on", "hf-jobs", *arguments)
    assert not jobs.containers
    assert "no run that was launched" in error(capsys, "status", "onhf")


@waiting
def test_who_is_not_known_is_told_so(
    jobs: Jobs, config: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert "status 401" in error(capsys, "launch", config, "--on", "hf-jobs")
    assert not jobs.containers


def test_without_a_hub_a_dry_run_shows_all(
    config: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_PROFILE", "mine")  # of a file that is only here
    monkeypatch.setenv("WANDB_PROJECT", "tuning")
    facts = run(capsys, "launch", config, "--on", "hf-jobs", "--dry-run")
    asked = json.loads(Path(facts["jobs"][0]["file"]).read_text("utf-8"))
    assert asked["env"]["WANDB_PROJECT"] == "tuning" and "AWS_PROFILE" not in asked["env"]
    assert asked["secrets"] == ["WANDB_API_KEY"] and asked["command"][3:5] == ["--runs", f"{config.parent}/bucket"]


def container(config: Path, seconds: float, *overrides: str) -> subprocess.Popen[str]:
    """The driver, as in its container."""
    assert main(["launch", str(config), "--on", "hf-jobs", "--dry-run", *overrides]) == 0
    files = {"run.yaml": config.parent / "runs" / "onhf" / "run.yaml", "rows.py": config.parent / "rows.py"}
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment["SHARDTUNE_FILES"] = packed_files({name: path.read_text("utf-8") for name, path in files.items()})
    options = ["--runs", str(config.parent / "bucket"), "--stages", "prepare,train", "--ranks", "1"]
    return subprocess.Popen(
        [sys.executable, "-m", "launcher.container_driver", *options, "--seconds", str(seconds)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.slow
@pytest.mark.parametrize("why", ["its time is over", "it is asked to end"])
def test_training_saves_before_its_container_ends(why: str, config: Path) -> None:
    long = ("train.max_steps=100000", "checkpoint.every=100000", "cluster.lead=10")
    process = container(config, 30 if why == "its time is over" else 10_000, *long)
    metrics = config.parent / "bucket" / "onhf" / "metrics.jsonl"
    deadline = time.monotonic() + 100
    while why == "it is asked to end" and not metrics.exists():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.2)
    if why == "it is asked to end":
        process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=100)
    assert process.returncode == 85, said
    assert list((config.parent / "bucket" / "onhf").glob("checkpoints/step-*/commit.json"))


def test_outside_of_a_job_the_driver_says_what_it_lacks(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "launcher.container_driver",
        "--runs",
        str(tmp_path),
        "--ranks",
        "1",
        "--seconds",
        "9",
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "SHARDTUNE_FILES is not set" in done.stderr
