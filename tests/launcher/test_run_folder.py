"""A run never writes over another, and only goes on as what it was: also where its checkpoints are only elsewhere."""

import json
import os
import shutil
import socket
import time
from contextlib import nullcontext
from pathlib import Path

import pytest

from data_tools.errors import UserError
from data_tools.lock import Lock, Pin
from data_tools.store import TokenStore, write_json
from launcher.cli import main
from launcher.config import RunConfig, load_run, save_run
from launcher.pins import follow_sweep
from launcher.run_folder import check_may_start, check_same_run
from sft.copies import Copies
from sft.heartbeat import heartbeat_path
from tests.sft.test_checkpoint import make_checkpoint


@pytest.fixture
def config(recipe: Path, store: TokenStore, tmp_path: Path) -> RunConfig:
    """A planned run that lost its folder after its first checkpoint was copied."""
    overrides = [f"data.store={store.folder}", f"checkpoint.copy_to={tmp_path / 'elsewhere'}"]
    assert main(["plan", str(recipe), *overrides, "--ranks", "1"]) == 0
    config = load_run(str(recipe), overrides)
    copies = Copies(config.folder, config.checkpoint)
    copies.offer(make_checkpoint(config.folder / "checkpoints", 4))
    assert not copies.wait(60) and not copies.trouble
    shutil.rmtree(config.folder)
    return config


def test_a_run_that_has_copies_is_not_begun_again(config: RunConfig) -> None:
    with pytest.raises(UserError, match=r"elsewhere/tiny already has step-00000004; go on with --resume, or start ano"):
        check_may_start(config, resuming=False)
    check_may_start(config, resuming=True)
    check_may_start(config.model_copy(update={"name": "other"}), resuming=False)


def test_a_run_goes_on_from_its_copies_as_what_it_was(config: RunConfig) -> None:
    for key, value, may_change in (("learning_rate", 1.0, False), ("max_steps", 9, True)):
        train = config.train.model_copy(update={key: value})
        if may_change:
            check_may_start(config.model_copy(update={"train": train}), resuming=True)
            continue
        with pytest.raises(UserError, match=r"tiny was started with train\.learning_rate=0\.01, not 1\.0"):
            check_may_start(config.model_copy(update={"train": train}), resuming=True)


def test_a_run_is_not_trained_beside_a_job_on_another_machine(config: RunConfig) -> None:
    sign = heartbeat_path(config.folder, 0)
    sign.parent.mkdir(parents=True)
    for host, refused in ((socket.gethostname(), False), ("gpu17", True)):
        sign.write_text(json.dumps({"pid": 1, "host": host}), "utf-8")
        with (
            pytest.raises(UserError, match="tiny is being trained on gpu17, or was 0 s ago")
            if refused
            else nullcontext()
        ):
            check_may_start(config, resuming=True)
    os.utime(sign, (0, time.time() - 200))
    check_may_start(config, resuming=True)
    os.utime(sign)
    write_json(config.folder / "status.json", {"phase": "stopped"})
    check_may_start(config, resuming=True)


@pytest.mark.parametrize(
    "setting",
    ["data.validation.fraction=0.5", "data.max_length=99", "train.packs_per_step=3", "data.too_long=split"],
)
def test_a_plan_is_compared_by_the_keys_of_the_yaml(
    setting: str, recipe: Path, store: TokenStore, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", str(recipe), f"data.store={store.folder}", "--ranks", "1"]) == 0
    run = load_run(str(recipe), []).folder
    make_checkpoint(run / "checkpoints", 4)
    assert main(["train", str(recipe), f"data.store={store.folder}", "--resume", setting]) == 1
    assert f"was planned with {setting.partition('=')[0]}=" in capsys.readouterr().err


def test_a_fetched_model_is_the_same_by_its_name_and_by_its_commit(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`plan` writes down the commit; the YAML that is launched again has only the name."""
    config = load_run(str(recipe), ["model.path=org/model", "model.config=null"])
    commit = config.model.model_copy(update={"revision": "a" * 40})
    make_checkpoint(config.folder / "checkpoints", 4)
    for before, now in ((commit, config.model), (config.model, commit)):
        save_run(config.model_copy(update={"model": before}))
        (config.folder / "lock.json").unlink(missing_ok=True)
        with pytest.raises(UserError, match=r"was started with model\.revision="):
            check_same_run(config.model_copy(update={"model": now}))
        Lock(config.folder / "lock.json", [Pin("model", "org/model", {}, None, "a" * 40)]).write()
        check_same_run(config.model_copy(update={"model": now}))


def test_a_run_of_a_sweep_takes_the_lock_of_the_sweep_until_it_has_begun(recipe: Path, tmp_path: Path) -> None:
    config, sweep = load_run(str(recipe), ["name=sweep-0"]), tmp_path / "runs" / "sweep"
    for folder, revision in ((config.folder, "a" * 40), (sweep, "b" * 40)):
        Lock(folder / "lock.json", [Pin("model", "org/model", {}, None, revision)]).write()
    old = (config.folder / "lock.json").read_text("utf-8")
    follow_sweep(config, sweep)
    assert not (config.folder / "lock.json").exists()  # `use_lock` takes that of the sweep
    (config.folder / "lock.json").write_text(old, "utf-8")
    make_checkpoint(config.folder / "checkpoints", 4)
    with pytest.raises(UserError, match=r"sweep-0 has checkpoints and a lock\.json that .*sweep was begun with"):
        follow_sweep(config, sweep)
    (sweep / "lock.json").write_text(old, "utf-8")
    follow_sweep(config, sweep)
    assert (config.folder / "lock.json").read_text("utf-8") == old


def test_a_place_that_cannot_be_reached_is_told_before_the_start(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "x")
    checkpoint = config.checkpoint.model_copy(update={"copy_to": "s3://nowhere"})
    with pytest.raises(UserError, match=r"checkpoint\.copy_to: s3://nowhere/tiny: Could not connect"):
        check_may_start(config.model_copy(update={"checkpoint": checkpoint}), resuming=False)
