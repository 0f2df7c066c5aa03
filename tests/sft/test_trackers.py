"""Trackers, the real ones, read back by their own libraries; each goes on under its id where a run is resumed."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from data_tools.errors import UserError
from data_tools.store import TokenStore
from sft.run import TrainingRun
from sft.trackers import Trackers, check_trackers
from tests.ranks import ROOT
from tests.sft.runs import plan_run

LINES = [(1, {"loss": 3.5, "loss/chats": 3.5}), (2, {"loss": 3.0, "loss/chats": 3.0}), (3, {"loss": 9.0})]
AGAIN = [(3, {"loss": 2.5, "loss/chats": 2.5})]
SCRIPT = """
import json, sys
from pathlib import Path
from sft.exits import exit_now
from sft.run import TrainingRun
from sft.trackers import Trackers
folder, name, ids, step, lines = sys.argv[1], sys.argv[2], *map(json.loads, sys.argv[3:])
trackers = Trackers([name], TrainingRun.open(Path(folder)), ids, step)
for at, values in lines:
    trackers.send(at, values)
print("IDS", json.dumps(trackers.ids))
exit_now(0)  # as ranks do
"""


@pytest.fixture(scope="module")
def run(store: TokenStore, chat_file: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainingRun:
    """A run that is planned."""
    return TrainingRun.open(plan_run(tmp_path_factory.mktemp("runs") / "tracked", store, chat_file, 1))


def track(run: TrainingRun, name: str, monkeypatch: pytest.MonkeyPatch, **environment: str) -> str:
    """Train to step 3, and again from 2 on, each in a process of its own, as it is; the id of the run."""
    import json

    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    ids: dict[str, str] = {}
    for step, lines in ((0, LINES), (2, AGAIN)):
        arguments = [str(run.folder), name, json.dumps(ids), json.dumps(step), json.dumps(lines)]
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, *arguments], capture_output=True, text=True, cwd=ROOT, check=True
        )
        assert "fails and gets nothing more" not in done.stdout, done.stdout
        found = json.loads(done.stdout[done.stdout.index("IDS") + 4 :].splitlines()[0])
        assert not ids or found == ids, "a resumed run is the same run"
        ids = found
    return ids[name]


def test_tensorboard(run: TrainingRun, monkeypatch: pytest.MonkeyPatch) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    track(run, "tensorboard", monkeypatch)
    events = EventAccumulator(str(run.folder / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 3.5), (2, 3.0), (3, 2.5)]
    assert "loss/chats" in events.Tags()["scalars"]


def test_mlflow(run: TrainingRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient

    place = f"file://{tmp_path / 'mlruns'}"
    known = track(run, "mlflow", monkeypatch, MLFLOW_TRACKING_URI=place, MLFLOW_ALLOW_FILE_STORE="true")
    client = MlflowClient(place)
    history = sorted(client.get_metric_history(known, "loss"), key=lambda metric: (metric.step, metric.timestamp))
    assert [(metric.step, metric.value) for metric in history] == [(1, 3.5), (2, 3.0), (3, 9.0), (3, 2.5)]
    assert client.get_run(known).data.params["train.learning_rate"] == "2e-05"


def test_trackio(run: TrainingRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = track(run, "trackio", monkeypatch, TRACKIO_DIR=str(tmp_path / "trackio"))
    script = (
        "from trackio import SQLiteStorage as storage\n"
        "print([(line['step'], line['loss']) for line in storage.get_logs('shardtune', 'tracked')])"
    )
    assert known == run.folder.name
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert "(1, 3.5), (2, 3.0)" in done.stdout and "(3, 2.5)]" in done.stdout, done.stdout + done.stderr


def test_wandb_without_a_key_writes_offline(run: TrainingRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))  # no key of the user's
    known = track(run, "wandb", monkeypatch, WANDB_MODE="offline")
    files = sorted((run.folder / "wandb").glob(f"offline-run-*-{known}/run-{known}.wandb"))
    assert len(files) == 2 and all(file.stat().st_size > 500 for file in files)


def test_a_tracker_that_fails_is_told_and_left_out(
    run: TrainingRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where TensorBoard's folder should be, there is a file."""
    from dataclasses import replace

    folder = tmp_path / "broken"
    folder.mkdir()
    (folder / "run.yaml").write_text(yaml.safe_dump({"name": "broken"}), encoding="utf-8")
    (folder / "tensorboard").write_text("")
    trackers = Trackers(["tensorboard"], replace(run, folder=folder), {}, 0)
    trackers.send(1, {"loss": 1.0})
    said = capsys.readouterr().out
    assert said.count("track: tensorboard fails and gets nothing more") == 1 and trackers.ids == {}


def test_what_is_missing_is_told_before_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    there = importlib.util.find_spec
    gone: set[str] = {"trackio", "sqlalchemy"}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in gone else there(name))
    with pytest.raises(UserError, match="trackio is not installed; pip install trackio"):
        check_trackers(["tensorboard", "trackio"])
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(UserError, match="set MLFLOW_TRACKING_URI to a server, or pip install mlflow"):
        check_trackers(["mlflow"])
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    check_trackers(["mlflow", "tensorboard"])
