"""Jobs on a real Ray cluster of two nodes: prepared over both, trained by Ray Train, and restarted."""

import json
import os
import re
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import fsspec
import pytest
import yaml

from launcher.attempts import read_attempts
from sft.record import read_metrics
from tests.conftest import chats, write_jsonl
from tests.data_tools.hub_server import Repository, serving
from tests.object_store import serving_s3
from tests.ray_cluster.conftest import RayCluster

pytestmark = pytest.mark.slow


def write_config(folder: Path, cluster: RayCluster, name: str, **train: Any) -> Path:
    """A small run of two ranks."""
    import sys

    write_jsonl(folder / "chats.jsonl", chats(300))
    small = {"architecture": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    config = {
        "name": name,
        "model": {"config": {**small, "num_attention_heads": 2, "max_position_embeddings": 512}},
        "data": {
            "sources": [{"path": str(folder / "chats.jsonl")}],
            "tokenizer": {"vocab_size": 300},
            "max_length": 512,
            "rows_per_shard": 64,
            "actors": 4,
            "validation": {"fraction": 0.02},
        },
        "train": {"packs_per_step": 2, "log_every": 1, "zero": {"stage": 2}, **train},
        "evaluate": {"samples": [], "on_start": False},
        "checkpoint": {"every": 20},
        "cluster": {"nodes": 2, "ray": {"address": cluster.address, "python": sys.executable}},
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(config), "utf-8")
    return path


def launch(cluster: RayCluster, folder: Path, config: Path, *arguments: str) -> Any:
    done = cluster.run("launcher", "launch", config, "--on", "ray", "--json", *arguments, folder=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


def wait(cluster: RayCluster, folder: Path, name: str, seconds: float = 300) -> dict[str, str]:
    """Until all stages are over: stage → state."""
    deadline = time.monotonic() + seconds
    while True:
        done = cluster.run("launcher", "status", name, "--json", folder=folder)
        states = {look["stage"]: look["state"] for look in json.loads(done.stdout)["jobs"]}
        if not {"PENDING", "RUNNING", "WAITING"} & set(states.values()):
            return states
        assert time.monotonic() < deadline, cluster.run("launcher", "logs", name, folder=folder).stdout[-3000:]
        time.sleep(1)


def workers() -> list[int]:
    """Processes of Ray Train's workers."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if path.read_bytes().startswith(b"ray::RayTrainWorker"):
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def test_a_run_is_prepared_trained_killed_and_exported(ray_cluster: RayCluster, tmp_path: Path) -> None:
    config = write_config(tmp_path, ray_cluster, "onray", max_steps=400)
    facts = launch(ray_cluster, tmp_path, config)
    assert launch(ray_cluster, tmp_path, config) == facts  # launched twice it is one job
    run = tmp_path / "runs" / "onray"
    deadline = time.monotonic() + 200
    while not (run / "checkpoints" / "step-00000040").exists():
        assert time.monotonic() < deadline, ray_cluster.run("launcher", "logs", "onray", folder=tmp_path).stdout[-3000:]
        time.sleep(0.05)
    os.kill(workers()[0], 9)
    assert wait(ray_cluster, tmp_path, "onray") == dict.fromkeys(("prepare", "train", "export"), "COMPLETED")
    starts = [line for line in read_attempts(run) if "begin" in line]
    assert len(starts) == 2 and starts[1]["step"] >= 40
    assert [line["step"] for line in read_metrics(run) if "loss" in line] == list(range(1, 401))
    assert (run / "model" / "model.safetensors").exists()
    assert "exported" in ray_cluster.run("launcher", "logs", "onray", folder=tmp_path).stdout


def test_machines_that_share_no_folder(ray_cluster: RayCluster, tmp_path: Path) -> None:
    """All that outlives a machine is in an object store; a rank is killed, and fetches what it needs from there."""
    rows = "".join(json.dumps(row) + "\n" for row in chats(300)).encode()
    with (
        serving_s3("runs") as address,
        serving({"datasets/me/chats": Repository({"a" * 40: {"train.jsonl": rows}})}) as hub,
    ):
        cluster = RayCluster(ray_cluster.address, {**ray_cluster.environment, "AWS_ENDPOINT_URL": address})
        cluster.environment.update(AWS_DEFAULT_REGION="us-east-1", HF_ENDPOINT=hub.url)
        config = write_config(tmp_path, cluster, "apart", max_steps=400)
        launch(
            cluster,
            tmp_path,
            config,
            "cluster.ray.storage=s3://runs/all",
            "data.sources=[{path: me/chats, split: train}]",
        )
        system, there = fsspec.filesystem("s3"), "runs/all/apart"
        deadline = time.monotonic() + 200
        while not committed(system, there):
            assert time.monotonic() < deadline, cluster.run("launcher", "logs", "apart", folder=tmp_path).stdout[-3000:]
            time.sleep(0.1)
        os.kill(workers()[0], 9)
        states = wait(cluster, tmp_path, "apart")
        said = cluster.run("launcher", "logs", "apart", folder=tmp_path).stdout
        assert states == dict.fromkeys(("fetch", "prepare", "train", "export"), "SUCCEEDED"), said[-3000:]
        assert "fetched on 1 more nodes" in said
        assert len(set(re.findall(r"fetching step-\d+", said))) == 2, "to go on, and to export"
        system.invalidate_cache()
        assert {"model/model.safetensors", "tokens/manifest.json", "report.html"} <= {
            path.removeprefix(f"{there}/") for path in system.find(there)
        }
        lines = [json.loads(line) for line in system.cat_file(f"{there}/metrics.jsonl").decode().splitlines()]
        assert [line["step"] for line in lines if "loss" in line] == list(range(1, 401))
        assert not (tmp_path / "runs" / "apart" / "checkpoints").exists()


def committed(system: Any, there: str) -> list[str]:
    system.invalidate_cache()
    return [path for path in system.glob(f"{there}/checkpoints/step-*/commit.json") if "00000001/" not in path]


def test_a_mistake_ends_the_job_and_says_what_it_was(ray_cluster: RayCluster, tmp_path: Path) -> None:
    config = write_config(tmp_path, ray_cluster, "wrong", max_steps=4, deepspeed={"nonsense": 1})
    launch(ray_cluster, tmp_path, config, "cluster.requeue.max_failures=1")
    states = wait(ray_cluster, tmp_path, "wrong")
    assert states["train"].startswith("FAILED")
    said = ray_cluster.run("launcher", "logs", "wrong", folder=tmp_path).stdout
    assert any(line.startswith("error: unknown key train.deepspeed.nonsense") for line in said.splitlines()), said[
        -3000:
    ]


def test_without_the_token_nothing_is_taken(ray_cluster: RayCluster, tmp_path: Path) -> None:
    config = write_config(tmp_path, ray_cluster, "stranger", max_steps=4)
    done = ray_cluster.run("launcher", "launch", config, "--on", "ray", folder=tmp_path, token=False)
    assert done.returncode == 1
    assert "wants a token" in done.stderr
    assert done.stderr.count("error:") == 1
    request = urllib.request.Request(
        f"{ray_cluster.address}/api/jobs/", b'{"entrypoint": "id"}', {"Content-Type": "application/json"}
    )
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request)
    assert refused.value.code in (401, 403)


def test_a_node_that_never_joins_is_missed(ray_cluster: RayCluster, tmp_path: Path) -> None:
    environment = {**ray_cluster.environment, "RAY_ADDRESS": ray_cluster.environment["GCS"]}
    asking = RayCluster(ray_cluster.address, environment)
    assert asking.run("launcher.ray_nodes", 2, "--seconds", 30, folder=tmp_path).returncode == 0
    missed = asking.run("launcher.ray_nodes", 3, "--seconds", 2, folder=tmp_path)
    assert missed.returncode == 1
    assert "2 of 3 nodes joined Ray within 2 s" in missed.stderr


def test_no_cluster_is_one_line(tmp_path: Path, ray_cluster: RayCluster) -> None:
    nowhere = RayCluster("http://127.0.0.1:1", ray_cluster.environment)
    config = write_config(tmp_path, nowhere, "nowhere", max_steps=4)
    done = nowhere.run("launcher", "launch", config, "--on", "ray", folder=tmp_path)
    assert done.returncode == 1
    assert "check cluster.ray.address" in done.stderr
    assert done.stderr.count("error:") == 1
