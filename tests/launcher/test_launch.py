"""`shardtune launch --on local`: the chain in the background of this machine; and what launching refuses."""

import json
import time
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml

from data_tools.store import write_json
from launcher import watch
from launcher.cli import main
from launcher.config import load_run, save_run
from launcher.jobs import Submitted
from launcher.sweep import sweep_points
from tests.conftest import chats, write_jsonl
from tests.launcher.commands import run


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "etc"))
    write_jsonl(tmp_path / "chats.jsonl", chats(120))
    small = {"architecture": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    values = {
        "name": "here",
        "model": {"config": {**small, "num_attention_heads": 2, "max_position_embeddings": 512}},
        "data": {
            "sources": [{"path": "chats.jsonl"}],
            "tokenizer": {"vocab_size": 300},
            "max_length": 512,
            "actors": 0,
        },
        "train": {"packs_per_step": 2, "max_steps": 3, "zero": {"stage": 0}},
        "evaluate": {"samples": [], "on_start": False},
    }
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(values), "utf-8")
    return path


def states(capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    return {look["stage"]: look["state"] for look in run(capsys, "status", "here")["jobs"]}


def test_the_chain_runs_in_the_background(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    facts = run(capsys, "launch", config, "--on", "local")
    assert [job["stage"] for job in facts["jobs"]] == ["prepare", "train", "export"]
    assert run(capsys, "launch", config, "--on", "local") == facts
    deadline = time.monotonic() + 120
    while {"RUNNING", "WAITING"} & set(found := states(capsys)).union(found.values()):
        assert time.monotonic() < deadline, found
        time.sleep(0.5)
    assert states(capsys) == dict.fromkeys(("prepare", "train", "export"), "COMPLETED")
    assert (config.parent / "runs" / "here" / "model" / "model.safetensors").exists()
    assert main(["logs", "here", "--stage", "train"]) == 0
    assert "trained 3 steps" in capsys.readouterr().out
    versions = json.loads((config.parent / "runs" / "here" / "jobs" / "versions.json").read_text("utf-8"))
    assert versions["packages"]["torch"]
    # It is over: launched again, nothing is done again, until another stage is asked for.
    again = run(capsys, "launch", config, "--on", "local")
    assert again == facts
    assert (
        run(capsys, "launch", config, "--on", "local", "--stages", "export")["jobs"][0]["id"] != facts["jobs"][0]["id"]
    )


def test_cancel_stops_what_runs(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(capsys, "launch", config, "--on", "local", "train.max_steps=100000", "checkpoint.every=100000")
    deadline = time.monotonic() + 120
    while not (config.parent / "runs" / "here" / "metrics.jsonl").exists():
        assert time.monotonic() < deadline, states(capsys)
        time.sleep(0.2)
    assert run(capsys, "cancel", "here")["cancelled"]
    while states(capsys)["train"] == "RUNNING":
        assert time.monotonic() < deadline, states(capsys)
        time.sleep(0.2)
    assert states(capsys)["train"] == "STOPPED"
    assert states(capsys)["export"] == "NOT RUN"


def test_a_dry_run_writes_and_starts_nothing(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    facts = run(capsys, "launch", config, "--on", "local", "--dry-run")
    assert {job["id"] for job in facts["jobs"]} == {None}
    assert Path(facts["jobs"][0]["file"]).read_text("utf-8").startswith("#!/bin/bash")
    assert not (config.parent / "runs" / "here" / "tokens").exists()
    assert main(["status", "here"]) == 1
    assert "no run that was launched" in capsys.readouterr().err


PODS = ("--on", "kubernetes", "cluster.kubernetes={image: tune, claim: runs}")


def test_without_kubectl_a_dry_run_shows_all_and_a_launch_submits_nothing(
    config: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(config.parent))
    for name in ("WANDB_API_KEY", "HF_TOKEN"):
        monkeypatch.setenv(name, "planted")
    facts = run(capsys, "launch", config, *PODS, "--dry-run")
    assert [job["stage"] for job in facts["jobs"]] == ["fetch", "prepare", "train", "export"]
    assert yaml.safe_load(Path(facts["jobs"][0]["file"]).read_text("utf-8"))["kind"] == "RayJob"
    assert not [path for path in config.parent.rglob("*") if path.is_file() and b"planted" in path.read_bytes()]
    assert main(["launch", str(config), *PODS]) == 1
    assert "error: there is no kubectl on PATH" in capsys.readouterr().err
    assert main(["status", "here"]) == 1
    assert "no run that was launched" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--stages", "prepare,cook"), "--stages: cook is none of fetch, prepare, train, export"),
        (("cluster.nodes=2",), "--on local has this machine alone"),
        (("cluster.partiton=gpu",), "cluster.partition"),
        (("--sweep", "data.tokenizer=a,b"), "a sweep has one store"),
        (("--sweep", "train.learning_rate"), "it is written as section.key=value,value"),
        (("--sweep", "name=a,b"), "is the same for all runs"),
        (("model=null",), "model"),
        (("--stages", "train"), "add prepare to --stages"),
    ],
)
def test_mistakes_are_one_line(
    arguments: tuple[str, ...], said: str, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["launch", str(config), "--on", "local", *arguments]) == 1
    error = capsys.readouterr().err
    assert said in error
    assert error.count("error:") == 1


def test_a_sweep_is_all_combinations_over_one_store(config: Path) -> None:
    sweep = ["train.learning_rate=1e-4,1e-3", "train.zero={stage: 1},{stage: 2}"]
    points = sweep_points(str(config), [], sweep)
    assert [(point.name, point.train.learning_rate, point.train.zero.stage) for point in points] == [
        ("here-0", 1e-4, 1),
        ("here-1", 1e-4, 2),
        ("here-2", 1e-3, 1),
        ("here-3", 1e-3, 2),
    ]
    assert len({point.store for point in points}) == 1


def test_a_sweep_here_trains_its_runs_one_after_the_other(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = ("--sweep", "train.learning_rate=1e-4,1e-3", "--stages", "fetch,prepare,train")
    run(capsys, "launch", config, "--on", "local", *sweep)
    first, runs = "runs/here-0", config.parent / "runs"
    assert main(["launch", first, "--on", "local"]) == 1
    assert "have a run in common" in capsys.readouterr().err
    assert main(["status", first]) == 1
    assert "is a run of the sweep runs/here" in capsys.readouterr().err
    deadline = time.monotonic() + 240
    while {"RUNNING", "WAITING"} & set(found := states(capsys)).union(found.values()):
        assert time.monotonic() < deadline, found
        time.sleep(0.5)
    found = run(capsys, "status", "here")["jobs"]
    assert [(look["stage"], look["state"]) for look in found if look["state"]] == [
        ("prepare", "COMPLETED"),
        ("train", "COMPLETED"),
    ]
    assert [(look["stage"], look["note"]) for look in found if not look["state"]] == [
        ("here-0", "train.learning_rate=0.0001"),
        ("here-1", "train.learning_rate=0.001"),
    ]
    locks = [(runs / name / "lock.json").read_bytes() for name in ("here", "here-0", "here-1")]
    assert locks[0] == locks[1] == locks[2], "fetched once for all"


@pytest.mark.parametrize(
    ("line", "note"),
    [
        ("error: the loss is nan", "the loss is nan"),
        ("1: error: the loss is nan", "the loss is nan"),
        ("[2026-11-29 01:00:00] error: no module named cuda", "no module named cuda"),
        ("no error: at all", "1 of 3 were not run"),
    ],
)
def test_why_a_job_failed(line: str, note: str, tmp_path: Path) -> None:
    """In whichever of its logs that is, but in none of an earlier launch."""
    for name in ("jobs/ends", "logs"):
        (tmp_path / name).mkdir(parents=True)
    for number, code in enumerate((0, 1)):
        write_json(tmp_path / "jobs" / "ends" / f"train-{number}.json", {"code": code})
    (tmp_path / "logs" / "train-7_0.out").write_text(f"{line}\n", "utf-8")
    (tmp_path / "logs" / "train-7_1.out").write_text("and so on\n", "utf-8")
    (tmp_path / "logs" / "train-6_1.out").write_text("error: of an earlier launch\n", "utf-8")
    job = Submitted("train", "local", "local.sh", "logs/train-[0-9l]*.out", 3, "7@1")
    write_json(tmp_path / "jobs" / "jobs.json", {"on": "local", "jobs": [asdict(job)]})
    assert watch._look(tmp_path)[0].note == note


def test_a_password_in_a_variable_is_refused(
    config: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://mlflow:hunter2@db/mlflow")
    assert main(["launch", str(config), "--on", "slurm", "--dry-run"]) == 1
    error = capsys.readouterr().err
    assert "error: MLFLOW_TRACKING_URI has a password in it" in error and "hunter2" not in error
    run(capsys, "launch", config, "--on", "local", "--dry-run")
    assert "hunter2" not in (config.parent / "runs" / "here" / "jobs" / "local.sh").read_text("utf-8")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://mlflow.example/@me")
    run(capsys, "launch", config, "--on", "slurm", "--dry-run")


def test_profiles_inherit_and_the_run_wins(config: Path, tmp_path: Path) -> None:
    folder = tmp_path / "etc" / "shardtune" / "clusters"
    folder.mkdir(parents=True)
    (folder / "base.yaml").write_text("nodes: 4\npartition: gpu\nprepare: {cpus: 16, partition: cpu}\n")
    (folder / "site.yaml").write_text("profile: base\nnodes: 8\nprepare: {cpus: 32}\n")
    (folder / "circle.yaml").write_text("profile: circle\n")
    cluster = load_run(str(config), ["cluster.profile=site", "cluster.partition=mine"]).cluster
    assert (cluster.nodes, cluster.partition, cluster.prepare.cpus) == (8, "mine", 32)
    assert (cluster.prepare.partition, cluster.profile) == ("cpu", None)
    with pytest.raises(Exception, match="go in a circle"):
        load_run(str(config), ["cluster.profile=circle"])


def test_a_profile_is_above_what_a_run_folder_has(config: Path, tmp_path: Path) -> None:
    """There everything is written down; another cluster is asked for by its profile all the same."""
    folder = tmp_path / "etc" / "shardtune" / "clusters"
    folder.mkdir(parents=True)
    (folder / "other.yaml").write_text("partition: other\nprepare: {cpus: 3}\n")
    run = load_run(str(config), ["cluster.partition=mine", "cluster.nodes=2"])
    save_run(run)
    cluster = load_run(str(run.folder), ["cluster.profile=other", "cluster.prepare.tasks=7"]).cluster
    assert (cluster.partition, cluster.nodes, cluster.prepare.cpus, cluster.prepare.tasks) == ("other", 2, 3, 7)


def test_shares_of_a_preparation_are_for_slurm_alone(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for on, expected in (("local", ["prepare", "train", "export"]), ("slurm", ["prepare-shares", "prepare"])):
        command = ["launch", str(config), "--on", on, "--dry-run", "--json", "cluster.prepare.how=array"]
        assert main(command) == 0
        facts = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert [job["stage"] for job in facts["jobs"]][: len(expected)] == expected
