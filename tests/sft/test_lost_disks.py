"""Runs that lose their disk, or the place of their copies, and go on: two ranks, dropout on, bit for bit."""

import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from data_tools.errors import UserError
from data_tools.store import TokenStore
from sft.digests import file_names
from sft.record import read_metrics
from sft.run import TrainingRun
from sft.trained import choose_checkpoint
from sft.world import World
from tests.object_store import serving_s3
from tests.ranks import run_ranks
from tests.sft.runs import plan_run
from tests.sft.test_stop import before_call

BUCKET = "copies"
STOPPED_AT, MICRO_BATCHES = 5, 3


@pytest.fixture(scope="module", autouse=True)
def s3() -> Iterator[str]:
    with serving_s3(BUCKET) as address:
        yield address


def scenes(world: World, folder: str) -> dict[str, Any]:
    """All runs of this module, in one process."""
    from sft.train import train

    assert train(TrainingRun.open(Path(folder) / "untouched"), False, world, lambda: False) == 0
    found = {scene.name: stopped_and_resumed(world, scene) for scene in sorted(Path(folder).glob("lost*"))}
    away = Path(folder) / "away"
    return {**found, "away": server_goes_away(world, away)} if away.exists() else found


def stopped_and_resumed(world: World, folder: Path) -> dict[str, Any]:
    """Stop a run after `STOPPED_AT` steps, lose something, and train it to its end."""
    from sft.train import train

    def ask() -> None:
        deadline = time.monotonic() + 60
        while committed_copies(folder.name)[-1:] != [STOPPED_AT - 1]:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        (folder / "stop").touch()

    with before_call("sft.session.make_batch", STOPPED_AT * MICRO_BATCHES if world.is_main else 0, ask):
        codes = [train(TrainingRun.open(folder), False, world, lambda: False)]
    copied = committed_copies(folder.name)
    if world.is_main:
        (folder / "stop").unlink()
        LOSSES[folder.name](folder)
    world.barrier()
    codes.append(train(TrainingRun.open(folder), True, world, lambda: False))
    return {"codes": codes, "stopped": copied, "ended": committed_copies(folder.name)}


def lose_all(run: Path) -> None:
    for name in ("checkpoints", "metrics.jsonl", "samples", "heartbeats"):
        path = run / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def lose_all_and_damage_newest(run: Path) -> None:
    lose_all(run)
    (path,) = fsspec.filesystem("s3").glob(f"{BUCKET}/{run.name}/checkpoints/step-*{STOPPED_AT}/state/*rank_1*optim*")
    content = bytearray(fsspec.filesystem("s3").cat_file(path))
    content[len(content) // 2] ^= 1
    fsspec.filesystem("s3").pipe_file(path, bytes(content))


def lose_newest(run: Path) -> None:
    shutil.rmtree(max((run / "checkpoints").iterdir()))


def lose_newest_copy(run: Path) -> None:
    system = fsspec.filesystem("s3")
    system.invalidate_cache()
    system.rm(max(system.ls(f"{BUCKET}/{run.name}/checkpoints")), recursive=True)


LOSSES = {
    "lost": lose_all,
    "lost-and-damaged": lose_all_and_damage_newest,
    "lost-newest": lose_newest,
    "lost-copy": lose_newest_copy,
}


def committed_copies(run: str) -> list[int]:
    """The steps whose copies are whole."""
    system = fsspec.filesystem("s3")
    system.invalidate_cache()
    paths = system.glob(f"{BUCKET}/{run}/checkpoints/*/commit.json")
    return sorted(int(path.split("/")[-2].removeprefix("step-")) for path in paths)


def server_goes_away(world: World, folder: Path) -> dict[str, Any]:
    """A server of the main rank's own that is away from the save of step 4 to that of step 8, and from that of the last
    step on; then it is back, and the run, which is over, is resumed.
    """
    from moto.server import ThreadedMotoServer

    from sft.train import train

    servers, addresses = [], []

    def come(port: int = 0) -> None:
        server = ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
        server.start()
        servers.append(server)
        addresses.append(server.get_host_and_port())

    def go() -> None:
        server = servers.pop()
        server.stop()
        server._server.server_close()  # else who comes is let in, and waits

    def come_again() -> None:
        come(addresses[-1][1])

    if world.is_main:
        come()
        os.environ["AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{addresses[-1][1]}"
        os.environ["AWS_MAX_ATTEMPTS"] = "1"
        fsspec.filesystem("s3").clear_instance_cache()
        fsspec.filesystem("s3").mkdir(BUCKET)
    calls = [count if world.is_main else 0 for count in (3, 5, 6)]
    save = "sft.session.commit_checkpoint"
    # Saves: steps 1, 2, 4, 6, 8, 10.
    with before_call(save, calls[0], go), before_call(save, calls[1], come_again), before_call(save, calls[2], go):
        codes = [train(TrainingRun.open(folder), False, world, lambda: False)]
    status = json.loads((folder / "status.json").read_text())
    if world.is_main:
        come_again()
    world.barrier()
    codes.append(train(TrainingRun.open(folder), True, world, lambda: False))
    found = {"codes": codes, "warning": status["warning"]}
    if world.is_main:
        found |= {"ended": committed_copies(folder.name), "then": json.loads((folder / "status.json").read_text())}
        go()
    world.barrier()
    return found


def losses(run: Path) -> list[tuple[int, str]]:
    return [
        (line["step"], line[name].hex()) for line in read_metrics(run) for name in ("loss", "grad_norm") if name in line
    ]


def play(names: list[str], store: TokenStore, chat_file: Path, folder: Path) -> tuple[Any, Any]:
    """`scenes` of some runs on two ranks, with one that nothing happens to; what each of the ranks says."""
    sections: dict[str, Any] = {
        "train": {"packs_per_step": 6, "max_steps": 10, "learning_rate": 1e-2, "zero": {"stage": 2}},
        "evaluate": {"on_start": False, "samples": []},
    }
    for name in ("untouched", *names):
        copy_to = {} if name == "untouched" else {"copy_to": f"s3://{BUCKET}"}
        plan_run(folder / name, store, chat_file, 2, **sections, checkpoint={"every": 2, "keep_last": 2, **copy_to})
    main, other = run_ranks(2, "tests.sft.test_lost_disks:scenes", folder=str(folder))
    expected = losses(folder / "untouched")
    assert len(expected) == 20
    for name in names:
        assert losses(folder / name) == expected, name
        assert main[name]["codes"] == other[name]["codes"], name
    return main, other


def check_stopped_and_resumed(found: dict[str, Any]) -> None:
    assert found["codes"] == [85, 0]
    assert found["stopped"] == [4, 5], "a run that stops waits for its last copy"
    assert found["ended"][-1] == 10 and len(found["ended"]) <= 2


def test_a_run_on_a_new_disk_goes_round_a_damaged_copy(store: TokenStore, chat_file: Path, tmp_path: Path) -> None:
    main, _ = play(["lost-and-damaged"], store, chat_file, tmp_path)
    check_stopped_and_resumed(main["lost-and-damaged"])
    run = TrainingRun.open(tmp_path / "lost-and-damaged")
    newest = run.checkpoints / "step-00000010"
    assert (run.checkpoints / "step-00000005.damaged").exists()
    kept = {name: (newest / name).read_bytes() for name in file_names(newest)}
    for step in (10, None):
        shutil.rmtree(run.checkpoints)
        assert choose_checkpoint(run, step=step) == newest, "exports and evaluations fetch as well"
        assert {name: (newest / name).read_bytes() for name in file_names(newest)} == kept
    with pytest.raises(UserError, match="has no checkpoint of step 3; it has those of 10"):
        choose_checkpoint(run, step=3)


@pytest.mark.slow
def test_the_newest_wins_and_a_server_may_be_away(store: TokenStore, chat_file: Path, tmp_path: Path) -> None:
    names = ["lost", "lost-newest", "lost-copy"]
    main, _ = play([*names, "away"], store, chat_file, tmp_path)
    for name in names:
        check_stopped_and_resumed(main[name])
    found = main["away"]
    assert found["codes"] == [0, 0]
    assert "the last checkpoint is only here, it could not be copied: checkpoint.copy_to: s3" in found["warning"]
    assert found["ended"][-1] == 10 and found["then"]["warning"] == ""
