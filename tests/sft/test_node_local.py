"""Runs whose folder is another one on each node: parts of checkpoints come together in an object store, bit for bit."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from data_tools.store import TokenStore
from sft.config_watch import CheckpointConfig
from sft.copies import Copies
from sft.digests import file_names, read_by
from sft.newest import newest_good_checkpoint
from sft.record import read_metrics
from sft.run import TrainingRun
from sft.trained import choose_checkpoint
from sft.world import World
from tests.object_store import serving_s3
from tests.ranks import run_ranks
from tests.sft.runs import plan_run
from tests.sft.test_checkpoint import make_checkpoint
from tests.sft.test_copies import evaluated
from tests.sft.test_lost_disks import BUCKET, committed_copies, losses
from tests.sft.test_stop import before_call

STOPPED_AT, MICRO_BATCHES = 5, 3


@pytest.fixture(scope="module", autouse=True)
def s3() -> Iterator[str]:
    with serving_s3(BUCKET) as address:
        yield address


def stopped_and_resumed(world: World, folder: str, names: list[str]) -> list[dict[str, Any]]:
    """Each rank has a disk of its own; when the runs were stopped, that of rank 1 is lost, and they go on."""
    from sft.train import train

    found = []
    for name in names:
        run = Path(folder) / f"node-{world.rank}" / name

        def ask(run: Path = run) -> None:
            (run / "stop").touch()

        with before_call("sft.session.make_batch", STOPPED_AT * MICRO_BATCHES if world.is_main else 0, ask):
            codes = [train(TrainingRun.open(run), False, world, lambda: False)]
        here = file_names(run / "checkpoints" / f"step-{STOPPED_AT:08d}")
        shutil.copytree(run, run.parent / f"{name}-stopped")
        if world.is_main:
            (run / "stop").unlink()
        else:
            shutil.rmtree(run / "checkpoints")
        if not name.endswith("fewer"):
            codes.append(train(TrainingRun.open(run), True, world, lambda: False))
        found.append({"codes": codes, "here": here})
    return found


def resumed_alone(world: World, folder: str) -> int:
    from sft.train import train

    return train(TrainingRun.open(Path(folder)), True, world, lambda: False)


def test_a_node_that_lost_its_disk_goes_on_and_so_does_one_alone(
    store: TokenStore, chat_file: Path, tmp_path: Path
) -> None:
    names = ["stage2", "stage3", "fewer"]
    for name in names:
        sections: dict[str, Any] = {
            "train": {"packs_per_step": 6, "max_steps": 10, "learning_rate": 1e-2, "zero": {"stage": 3}},
            "evaluate": {"on_start": False, "samples": []},
        }
        if name == "stage2":
            sections["train"]["zero"] = {"stage": 2}
        plan_run(tmp_path / "whole" / name, store, chat_file, 2, **sections, checkpoint={"every": 2})
        local = {"every": 2, "keep_last": 1, "copy_to": f"s3://{BUCKET}", "node_local": True}
        for node in ("node-0", "node-1", "node-2"):
            plan_run(tmp_path / node / name, store, chat_file, 2, **sections, checkpoint=local)
    for name in names[:2]:
        run_ranks(2, "tests.sft.test_node_local:calm", folder=str(tmp_path / "whole" / name))
    where = {"folder": str(tmp_path), "names": names}
    main, other = run_ranks(2, "tests.sft.test_node_local:stopped_and_resumed", **where)
    for name, of_main, of_other in zip(names, main, other, strict=True):
        assert of_main["codes"] == of_other["codes"] == ([85] if name == "fewer" else [85, 0])
        assert "rank-00001.pt" not in of_main["here"] and "rank-00000.pt" not in of_other["here"]
        assert "rank-00000.pt" in of_main["here"] and "rank-00001.pt" in of_other["here"]
    for name in names[:2]:
        assert losses(tmp_path / "node-0" / name) == losses(tmp_path / "whole" / name)
        assert committed_copies(name) == [10], "older ones are deleted, with their seals"
        run = TrainingRun.open(tmp_path / "node-1" / name)
        newest = choose_checkpoint(run)
        assert newest == run.checkpoints / "step-00000010" and "rank-00000.pt" in file_names(newest)
    # One rank on a third node: its parts are put together anew; with another rank come other drop-outs.
    assert run_ranks(1, "tests.sft.test_node_local:resumed_alone", folder=str(tmp_path / "node-2" / "fewer")) == [0]
    alone = [line["loss"] for line in read_metrics(tmp_path / "node-2" / "fewer") if "loss" in line]
    together = [line["loss"] for line in read_metrics(tmp_path / "whole" / "stage3") if "loss" in line]
    assert alone[:STOPPED_AT] == together[:STOPPED_AT] and alone == pytest.approx(together, rel=1e-3)


def calm(world: World, folder: str) -> int:
    from sft.train import train

    return train(TrainingRun.open(Path(folder)), False, world, lambda: False)


def without_copies(world: World, folder: str, nodes: int) -> list[str]:
    """Each rank, or all of them together, has a checkpoint, and nothing was copied; what lies there afterwards."""
    node = world.rank % nodes
    here = tuple(rank for rank in range(world.size) if rank % nodes == node)
    world = replace(world, here=here)
    run = Path(folder) / f"node-{node}" / "run"
    if world.keeps_folder:
        make_checkpoint(run / "checkpoints", 4)
    world.barrier()
    settings = CheckpointConfig(copy_to=f"{folder}/elsewhere", node_local=True)
    copies = Copies(run, settings, world, tuple(range(nodes))) if world.keeps_folder else None
    found = newest_good_checkpoint(run / "checkpoints", world, copies)
    world.barrier()
    return [str(found and found.name), *sorted(path.name for path in (run / "checkpoints").iterdir())]


def test_what_was_never_copied_is_not_deleted(tmp_path: Path) -> None:
    where = {"folder": str(tmp_path), "nodes": 2}
    apart = run_ranks(2, "tests.sft.test_node_local:without_copies", **where)
    assert apart == [["None", "step-00000004.uncopied"]] * 2, "parts that cannot be put together"
    where = {"folder": str(tmp_path / "one"), "nodes": 1}
    assert run_ranks(2, "tests.sft.test_node_local:without_copies", **where) == [["step-00000004"] * 2] * 2


def test_other_nodes_copy_their_part_of_the_best_once(tmp_path: Path) -> None:
    settings = CheckpointConfig(copy_to=str(tmp_path / "there"), node_local=True, keep_best=True)
    copies = Copies(tmp_path / "run", settings, World(1, 2, torch.device("cpu"), here=(1,)), keepers=(0, 1))
    for step, loss in ((2, 1.0), (4, 2.0), (6, 2.1)):
        checkpoint = evaluated(tmp_path / "run" / "checkpoints", step, loss)
        (checkpoint / "rank-00001.pt").write_text(f"part of step {step}")
        copies.offer(checkpoint)
        assert not copies.wait(60) and not copies.trouble
        if step == 2:
            first = (tmp_path / "there" / "run" / "checkpoints" / "step-00000002" / "rank-00001.pt").stat()
    last = (tmp_path / "there" / "run" / "checkpoints" / "step-00000002" / "rank-00001.pt").stat()
    assert (last.st_ino, last.st_mtime_ns) == (first.st_ino, first.st_mtime_ns)


def test_what_a_rank_reads() -> None:
    names = ["state/zero_pp_rank_1_mp_rank_00_optim_states.pt", "state/mp_rank_00_model_states.pt", "probe.pt"]
    assert [read_by(name, (1,)) for name in names] == [True, True, True]
    assert [read_by(name, (0, 2)) for name in names] == [False, True, True]
    assert not read_by("rank-00001.pt", (0, 2))


def test_parts_need_a_place_to_come_together() -> None:
    with pytest.raises(ValidationError, match=r"set checkpoint\.copy_to"):
        CheckpointConfig(node_local=True)
