"""Checkpoints that are copied elsewhere, and come back: against a server on loopback that speaks S3, and a folder."""

import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from data_tools.errors import UserError
from sft.checkpoint import delete_old
from sft.config_watch import CheckpointConfig
from sft.copies import Copies
from sft.digests import COMMIT, describe_files, file_names
from sft.newest import newest_good_checkpoint
from tests.object_store import serving_s3
from tests.sft.test_checkpoint import ALONE, make_checkpoint


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    with serving_s3("copies") as address:
        yield address


@pytest.fixture(params=["s3", "folder"])
def place(request: pytest.FixtureRequest, s3: str, tmp_path: Path) -> Iterator[str]:
    """Where copies go."""
    if request.param == "folder":
        yield str(tmp_path / "elsewhere")
    else:
        yield "s3://copies/runs"
        fsspec.filesystem("s3").rm("copies/runs", recursive=True)


def copies_of(run: Path, place: str, keep_last: int = 2, keep_best: bool = False) -> Copies:
    return Copies(run, CheckpointConfig(copy_to=place, keep_last=keep_last, keep_best=keep_best))


def copied(copies: Copies, *checkpoints: Path) -> list[str]:
    """Copy some, one after the other."""
    for checkpoint in checkpoints:
        copies.offer(checkpoint)
        assert not copies.wait(60) and not copies.trouble
    return copies.names()


def write(place: str, name: str, content: bytes) -> None:
    """As anyone might, there."""
    system, path = fsspec.core.url_to_fs(f"{place}/run/checkpoints/{name}")
    if place.startswith("/"):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
    system.pipe_file(path, content)


def evaluated(folder: Path, step: int, loss: float) -> Path:
    """A committed checkpoint whose record has a validation loss."""
    path = make_checkpoint(folder, step)
    names = ("tokens", "trained_tokens", "plan_hash", "model_hash", "zero_stage", "ranks", "trackers")
    record = {"step": step, "evaluated": True, "validations": [[step, loss]], **dict.fromkeys(names, 0)}
    (path / COMMIT).write_text(json.dumps({**record, "files": describe_files(path, ALONE)}))
    return path


def test_what_is_copied_comes_back(place: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    (run / "run.yaml").write_text("name: run")
    (run / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}\n')
    made = [make_checkpoint(run / "checkpoints", step) for step in (1, 2, 3)]
    copies = copies_of(run, place)
    assert copies.names() == []
    assert copied(copies, *made) == ["step-00000002", "step-00000003"], "keep_last holds there as well"
    assert copies.run_file() == b"name: run"
    expected = {name: (made[2] / name).read_bytes() for name in (*file_names(made[2]), COMMIT)}

    new = tmp_path / "new" / "run"
    found = newest_good_checkpoint(new / "checkpoints", ALONE, copies_of(new, place))
    assert found == new / "checkpoints" / "step-00000003"
    assert {name: (found / name).read_bytes() for name in (*file_names(found), COMMIT)} == expected
    assert (new / "metrics.jsonl").read_text() == '{"step": 1}\n{"step": 2}\n'
    assert [path.name for path in (new / "checkpoints").iterdir()] == ["step-00000003"]


def test_the_newest_wins_wherever_it_is(place: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    older, newer = (make_checkpoint(run / "checkpoints", step) for step in (4, 8))
    copied(copies_of(run, place), older, newer)
    shutil.rmtree(newer)
    assert newest_good_checkpoint(run / "checkpoints", ALONE, copies_of(run, place)) == newer, "the copy is newer"
    newest = make_checkpoint(run / "checkpoints", 12)
    shutil.rmtree(newer)
    assert newest_good_checkpoint(run / "checkpoints", ALONE, copies_of(run, place)) == newest
    assert not newer.exists(), "nothing is fetched that is not wanted"


def test_a_damaged_copy_is_gone_round(place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One whose file was changed, one whose record was, one that lacks a file, and what has no record."""
    run = tmp_path / "run"
    made = [make_checkpoint(run / "checkpoints", step) for step in (1, 2, 3, 4, 5)]
    copied(copies_of(run, place, keep_last=9), *made)
    system, root = fsspec.core.url_to_fs(f"{place}/run/checkpoints")
    write(place, "step-00000005/rank-00000.pt", b"what a pickle could do")
    write(place, f"step-00000004/{COMMIT}", b"{}")
    system.rm_file(f"{root}/step-00000003/rank-00000.pt")
    outside = {"files": {"../../escaped": {"bytes": 1, "blake3": ""}}}
    write(place, f"step-00000006/{COMMIT}", json.dumps(outside).encode())
    system.rm_file(f"{root}/step-00000002/{COMMIT}")
    new = tmp_path / "new" / "run"
    found = newest_good_checkpoint(new / "checkpoints", ALONE, copies_of(new, place))
    assert found == new / "checkpoints" / "step-00000001"
    said = capsys.readouterr().out
    assert "step-00000005 is damaged (rank-00000.pt was changed); trying the one before" in said
    assert "step-00000006/commit.json names files outside the checkpoint" in said
    assert not list(tmp_path.rglob("escaped"))
    shutil.rmtree(new)
    for name in ("step-00000001", "step-00000003"):
        system.rm(f"{root}/{name}", recursive=True)
    with pytest.raises(
        UserError, match=r"has no good checkpoint, and none could be fetched: .*is not what was written"
    ):
        newest_good_checkpoint(new / "checkpoints", ALONE, copies_of(new, place))


def test_a_copy_that_was_made_before_is_made_again_whole(place: str, tmp_path: Path) -> None:
    """A course that was left, or broke off: nothing of it is mixed with what is copied now."""
    run = tmp_path / "run"
    checkpoint = make_checkpoint(run / "checkpoints", 4)
    for name in (COMMIT, "state/of_another_rank.pt"):
        write(place, f"step-00000004/{name}", b"old")
    copied(copies_of(run, place), checkpoint)
    shutil.rmtree(checkpoint)
    assert newest_good_checkpoint(run / "checkpoints", ALONE, copies_of(run, place)) == checkpoint


def test_the_best_is_kept_there_too(place: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    copies = copies_of(run, place, keep_last=1, keep_best=True)
    for step, loss in ((1, 3.0), (2, 1.0), (3, 2.0), (4, 2.5)):
        copied(copies, evaluated(run / "checkpoints", step, loss))
    assert copies.names() == ["step-00000002", "step-00000004"]


def test_the_best_is_tried_again(tmp_path: Path) -> None:
    run, place = tmp_path / "run", tmp_path / "elsewhere"
    copies = copies_of(run, str(place), keep_last=1, keep_best=True)
    place.touch()  # no folder: nothing can be put there
    copies.offer(evaluated(run / "checkpoints", 1, 1.0))
    assert not copies.wait(60) and copies.trouble
    place.unlink()
    assert copied(copies, evaluated(run / "checkpoints", 2, 2.0)) == ["step-00000001", "step-00000002"]


class Slow:
    """Holds the first copy until it is let go."""

    def __init__(self, copies: Copies) -> None:
        self.reached, self.go = threading.Event(), threading.Event()
        self.copied: list[str] = []
        self._copy = copies._copy
        copies._copy = self.copy  # type: ignore[method-assign]

    def copy(self, checkpoint: Path) -> None:
        self.reached.set()
        self.go.wait(60)
        self.copied.append(checkpoint.name)
        self._copy(checkpoint)


@pytest.mark.parametrize("keep_best", [False, True])
def test_one_that_waits_gives_way_and_none_is_deleted_under_way(keep_best: bool, tmp_path: Path) -> None:
    run, place = tmp_path / "run", str(tmp_path / "elsewhere")
    copies = copies_of(run, place, keep_last=1, keep_best=keep_best)
    slow, checkpoints = Slow(copies), run / "checkpoints"
    for step, loss in ((1, 3.0), (2, 1.0), (3, 2.0), (4, 2.5)):
        copies.offer(evaluated(checkpoints, step, loss))
        assert slow.reached.wait(60)
        delete_old(checkpoints, CheckpointConfig(keep_last=1, keep_best=keep_best), copies.busy())
    here = {path.name for path in checkpoints.iterdir()}
    assert here == {"step-00000001", "step-00000004", *(["step-00000002"] if keep_best else [])}
    assert copies.wait(0.01)
    slow.go.set()
    assert not copies.wait(60) and not copies.trouble
    best = ["step-00000002"] if keep_best else []
    assert slow.copied == ["step-00000001", *best, "step-00000004"]
    assert copies.names() == [*best, "step-00000004"]
    delete_old(checkpoints, CheckpointConfig(keep_last=1, keep_best=keep_best), copies.busy())
    assert sorted(path.name for path in checkpoints.iterdir()) == [*best, "step-00000004"]


def test_later_copies_stay_until_training_has_come_to_them(place: str, tmp_path: Path) -> None:
    """Training goes on from step 4 where the copy of step 8 could not be fetched; it is not lost by that."""
    run = tmp_path / "run"
    copied(copies_of(run, place), make_checkpoint(run / "checkpoints", 8))
    shutil.rmtree(run)
    copies = copies_of(run, place, keep_last=1)
    for step in (5, 6):
        copied(copies, make_checkpoint(run / "checkpoints", step))
    assert copies.names() == ["step-00000006", "step-00000008"]
    assert copied(copies, make_checkpoint(run / "checkpoints", 9)) == ["step-00000009"]


def test_a_place_that_cannot_be_reached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "x")
    fsspec.filesystem("s3").clear_instance_cache()
    run = tmp_path / "run"
    checkpoints = run / "checkpoints"
    with pytest.raises(UserError, match=r"none could be fetched: checkpoint\.copy_to: s3://nowhere/run: Could not con"):
        newest_good_checkpoint(checkpoints, ALONE, copies_of(run, "s3://nowhere"))
    checkpoint, copies = make_checkpoint(checkpoints, 4), copies_of(run, "s3://nowhere")
    assert newest_good_checkpoint(checkpoints, ALONE, copies) == checkpoint, "there is one here"
    copies.offer(checkpoint)
    assert not copies.wait(60)
    assert "Could not connect" in copies.trouble
    said = capsys.readouterr().out
    assert "; going on with what is here" in said
    (line,) = [line for line in said.splitlines() if line.startswith("a checkpoint was not copied: ")]
    assert line.endswith("it is tried again with the next one")
    fsspec.filesystem("s3").clear_instance_cache()


def test_a_place_where_nothing_can_be_put_is_told_before_the_first_step(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.yaml").write_text("name: run")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"checkpoint\.copy_to: .*/file/run/run\.yaml: .*Not a directory"):
        copies_of(tmp_path / "run", str(tmp_path / "file")).begin()


def test_a_missing_client_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "gcsfs", None)
    with pytest.raises(UserError, match=r"checkpoint\.copy_to: gs:// needs another package: pip install 'shardtune"):
        copies_of(tmp_path, "gs://bucket/runs")
