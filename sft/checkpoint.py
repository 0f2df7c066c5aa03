"""Checkpoints that are whole or not there.

    checkpoints/step-00000200/          appears under this name when it is complete
        state/                          DeepSpeed's files, one set per rank
        rank-00000.pt                   random number states of a rank, and what lies where in its part of the state
        probe.pt                        some logits of the trained model, for exports to compare with
        commit.json                     written last: step, plan, ranks, and the size and BLAKE3 of every file

Everything is written in `step-00000200.partial`. Only when every rank has written and the record lists every file is
the folder renamed. DeepSpeed's own `latest` file is not used: it moves before all ranks have written.

A checkpoint is compared with its record before anything in it is unpickled. On the ranks and with the ZeRO stage that
it was written with, it is loaded by DeepSpeed; on others its parts are put together anew (`elastic.py`).
"""

import os
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from random import Random
from typing import Any

import torch

from data_tools.errors import UserError
from data_tools.store import fsync_folder, write_json
from sft.config import TrainConfig
from sft.config_watch import CheckpointConfig
from sft.copies import Copies
from sft.digests import COMMIT, describe_files, from_main, gathered
from sft.elastic import check_convertible, has_weights_on_disk, layout_of, load_other_split, read_layout, state_bytes
from sft.engine import STATE_FOLDER, load_engine, save_engine
from sft.newest import bring, newest_good_checkpoint
from sft.progress import Progress, best_checkpoint, checkpoint_path, committed_checkpoints, read_progress
from sft.world import World

_SPARE_BYTES = 2**20
"""For what a checkpoint has besides the state."""


def commit_checkpoint(engine: Any, folder: Path, progress: Progress, probe: dict[str, Any], world: World) -> Path:
    """Write a checkpoint; all ranks call it, and return when it is committed.

    Args:
        folder: the run's `checkpoints`.
        probe: tokens and logits of the trained model (the same on all ranks).

    Raises:
        UserError: there is no room for it; what is committed stays as it is.
    """
    final = checkpoint_path(folder, progress.step)
    partial = final.with_name(final.name + ".partial")
    if world.keeps_folder:
        for left in (*folder.glob("step-*.partial"), *folder.glob("step-*.replaced")):  # of a run that was killed
            shutil.rmtree(left)
        partial.mkdir(parents=True)
    check_room(folder, state_bytes(engine), world)
    with _writing(partial):
        save_engine(engine, partial)
        torch.save({**_random_states(), "layout": _plain(layout_of(engine))}, partial / f"rank-{world.rank:05d}.pt")
        if world.is_main:
            torch.save(probe, partial / "probe.pt")
    world.barrier()
    files = describe_files(partial, world)
    record = from_main(world, {**asdict(progress), "files": files})
    if world.keeps_folder:
        write_json(partial / COMMIT, record)
        before = final.with_name(final.name + ".replaced")
        if final.exists():  # it is evaluated now; until this one has its name, that one may be all there is
            os.rename(final, before)
        os.rename(partial, final)
        fsync_folder(folder)
        shutil.rmtree(before, ignore_errors=True)
    world.barrier()
    return final


def delete_old(folder: Path, settings: CheckpointConfig, used: Collection[Path]) -> None:
    """Delete older checkpoints that the settings do not keep; one process calls it.

    Args:
        used: these stay in any case.
    """
    kept = {*used, best_checkpoint(folder) if settings.keep_best else None}
    for old in committed_checkpoints(folder)[: -settings.keep_last]:
        if old not in kept:
            left = old.with_name(old.name + ".replaced")  # what a kill leaves half deleted has no name of a checkpoint
            os.rename(old, left)
            shutil.rmtree(left, ignore_errors=True)


def check_room(folder: Path, needed: int, world: World) -> None:
    """Look for room before anything is written; all ranks call it, and come to the same answer.

    Args:
        needed: bytes that this rank will write.

    Raises:
        UserError: there is too little.
    """
    parts = gathered(world, needed)
    needed_here = sum(parts[rank] for rank in world.ranks_here)
    free = shutil.disk_usage(folder).free
    trouble = (
        f"{folder} has room for {free / 1e9:,.2f} GB, and a checkpoint needs {needed_here / 1e9:,.2f} GB; "
        f"make room there (or lower checkpoint.keep_last), and go on with --resume"
    )
    short = gathered(world, trouble if free < needed_here + _SPARE_BYTES else "")
    if any(short):
        raise UserError(next(filter(None, short)))


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """torch says of a disk that is full that its writer is not where it should be, or that a stream failed."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        if not isinstance(error, OSError) and not any(word in str(error) for word in ("inline_container", "iostream")):
            raise
        reason = " ".join(str(error).split())
        raise UserError(f"cannot write {folder} ({reason}); make room there, and go on with --resume") from error


def resume(
    engine: Any,
    folder: Path,
    plan_hash: str,
    model_hash: str,
    train: TrainConfig,
    world: World,
    copies: Copies | None = None,
) -> Progress | None:
    """Load the newest good checkpoint into the engine, on all ranks alike; None when there is none to load.

    Args:
        copies: the main rank's, where checkpoints are copied; a newer one is fetched.

    Raises:
        UserError: it belongs to another plan or model, or cannot be loaded on these ranks.
    """
    path = newest_good_checkpoint(folder, world, copies)
    if path is None:
        return None
    progress = read_progress(path)
    if progress.plan_hash != plan_hash:
        raise UserError(f"{path} belongs to another pack plan: the data or its order changed; use another run name")
    if progress.model_hash != model_hash:
        raise UserError(f"{path} belongs to another model: its parameters have other names or shapes; use its own")
    files = [path / f"rank-{rank:05d}.pt" for rank in range(progress.ranks)]
    own = torch.load(files[world.rank], weights_only=True) if world.rank < progress.ranks else None
    alike = _is_split_alike(engine, progress, own, train, world)
    if alike and not any(gathered(world, has_weights_on_disk(engine))):
        load_engine(engine, path)
    else:  # DeepSpeed brings no weights back to a disk, either
        written = f"{progress.ranks} rank{'s' * (progress.ranks > 1)} with ZeRO stage {progress.zero_stage}"
        check_convertible(path, train, written)
        if world.is_main and not alike:
            here = f"{world.size} rank{'s' * (world.size > 1)} with stage {train.zero.stage}"
            print(f"{path} was written by {written}; its parts are put together for {here}", flush=True)
        if len(world.ranks_here) < world.size and (trouble := bring(path.name, folder, world, copies)):
            raise UserError(f"the parts of {path} on other nodes are needed and could not be fetched: {trouble}")
        layouts = [read_layout(torch.load(file, weights_only=True)["layout"]) for file in files]
        load_other_split(engine, path / STATE_FOLDER, layouts, progress.zero_stage)
    if own is not None:
        _restore_random_states(own)
    else:  # there was no such rank
        torch.manual_seed(Random(f"{train.seed} {progress.step} {world.rank}").getrandbits(63))
    world.barrier()
    return replace(progress, zero_stage=train.zero.stage, ranks=world.size)  # as the next checkpoint will be split


def _is_split_alike(engine: Any, progress: Progress, own: Any, train: TrainConfig, world: World) -> bool:
    alike = (progress.zero_stage, progress.ranks) == (train.zero.stage, world.size)
    return all(gathered(world, alike and own is not None and read_layout(own["layout"]) == layout_of(engine)))


def _plain(layout: Any) -> Any:
    """A layout of plain tuples, which a file may hold that is loaded as weights only."""
    return [{kind: [tuple(piece) for piece in pieces] for kind, pieces in group.items()} for group in layout]


def _random_states() -> dict[str, Any]:
    cuda = torch.cuda.get_rng_state() if torch.cuda.is_available() else None
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def _restore_random_states(states: dict[str, Any]) -> None:
    torch.set_rng_state(states["cpu"])
    if states["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])
