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
from sft.digests import COMMIT, describe_files, find_damage, from_main, gathered
from sft.elastic import check_convertible, layout_of, load_other_split, read_layout, state_bytes
from sft.engine import STATE_FOLDER, load_engine, save_engine
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
    if world.is_main:
        for left in folder.glob("step-*.partial"):  # of a run that was killed
            shutil.rmtree(left)
        partial.mkdir(parents=True)
    check_room(folder, int(world.sum(state_bytes(engine))[0]), world)
    with _writing(partial):
        save_engine(engine, partial)
        torch.save({**_random_states(), "layout": _plain(layout_of(engine))}, partial / f"rank-{world.rank:05d}.pt")
        if world.is_main:
            torch.save(probe, partial / "probe.pt")
    world.barrier()
    files = describe_files(partial, world)
    if world.is_main:
        write_json(partial / COMMIT, {**asdict(progress), "files": files})
        shutil.rmtree(final, ignore_errors=True)
        os.rename(partial, final)
        fsync_folder(folder)
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
            shutil.rmtree(old)


def check_room(folder: Path, needed: int, world: World) -> None:
    """Look for room before anything is written; all ranks call it.

    Raises:
        UserError: there is too little.
    """
    free = from_main(world, shutil.disk_usage(folder).free if world.is_main else None)
    if free < needed + _SPARE_BYTES:
        raise UserError(
            f"{folder} has room for {free / 1e9:,.2f} GB, and a checkpoint needs {needed / 1e9:,.2f} GB; "
            f"make room there (or lower checkpoint.keep_last), and go on with --resume"
        )


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
    if _is_split_alike(engine, progress, own, train, world):
        load_engine(engine, path)
    else:
        written = f"{progress.ranks} rank{'s' * (progress.ranks > 1)} with ZeRO stage {progress.zero_stage}"
        check_convertible(path, train, written)
        if world.is_main:
            here = f"{world.size} rank{'s' * (world.size > 1)} with stage {train.zero.stage}"
            print(f"{path} was written by {written}; its parts are put together for {here}", flush=True)
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


def newest_good_checkpoint(folder: Path, world: World, copies: Copies | None = None) -> Path | None:
    """The newest checkpoint whose files are what was written; newer ones are renamed to `….damaged`.

    Copies of newer checkpoints than there are here are fetched. All ranks call it, and find the same one.

    Raises:
        UserError: there are checkpoints, but all are damaged, or copies that may be there cannot be reached.
    """
    there, trouble = from_main(world, _copied(copies))
    damaged = False
    while True:
        here: list[Path] = from_main(world, committed_checkpoints(folder))
        if there and (not here or there[-1] > here[-1].name):
            trouble = bring(there.pop(), folder, world, copies)
        elif not here:
            break
        elif (damage := find_damage(here[-1], world)) is None:
            return here[-1]
        else:
            _put_aside(here[-1], damage, world)
            damaged = True
    if trouble:
        raise UserError(f"{folder} has no good checkpoint, and none could be fetched: {trouble}")
    if damaged:
        raise UserError(f"all checkpoints in {folder} were damaged; delete them to begin again")
    return None


def _copied(copies: Copies | None) -> tuple[list[str], str]:
    """The names of copies, and why they cannot be told."""
    if copies is None:
        return [], ""
    try:
        return copies.names(), ""
    except UserError as error:
        print(f"{error}; going on with what is here", flush=True)
        return [], str(error)


def bring(name: str, folder: Path, world: World, copies: Copies | None) -> str:
    """Fetch a copy into the folder of checkpoints; returns why it could not be. No rank waits for it in one collective,
    which would end after a time.
    """
    if copies is not None:
        print(f"fetching {name} from {copies.location}", flush=True)
        copies.bring(name, folder)
    while world.max(int(copies is not None and copies.wait(1.0))):
        pass
    trouble: str = from_main(world, copies.trouble if copies is not None else "")
    if trouble and world.is_main:
        print(f"{name} was not fetched: {trouble}; trying the one before", flush=True)
    return trouble


def _put_aside(checkpoint: Path, damage: str, world: World) -> None:
    if world.is_main:
        print(f"{checkpoint} is damaged ({damage}); trying the one before", flush=True)
        shutil.rmtree(aside := checkpoint.with_name(checkpoint.name + ".damaged"), ignore_errors=True)
        os.rename(checkpoint, aside)
    world.barrier()


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
