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

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

import torch

from data_tools.errors import UserError
from data_tools.plan import StepSize
from data_tools.store import fsync_folder, write_json
from sft.config import TrainConfig
from sft.config_watch import CheckpointConfig
from sft.digests import COMMIT, describe_files, find_damage, from_main, gathered
from sft.elastic import check_convertible, layout_of, load_other_split, read_layout, state_bytes
from sft.engine import STATE_FOLDER, load_engine, save_engine
from sft.world import World

_SPARE_BYTES = 2**20
"""For what a checkpoint has besides the state."""


@dataclass(frozen=True)
class Progress:
    """How far a run is; with the plan it says everything about the data that follows."""

    step: int
    """Optimizer steps done."""
    tokens: int
    """Tokens seen."""
    trained_tokens: int
    """Labels seen."""
    plan_hash: str
    model_hash: str
    """Of the names and shapes of the model's parameters."""
    zero_stage: int
    ranks: int
    evaluated: bool
    """Whether an evaluation was made after this very step."""
    validations: tuple[tuple[int, float], ...]
    """Step and validation loss of all evaluations so far."""
    trackers: dict[str, str]
    """What each tracker calls the run."""

    def after(self, size: StepSize) -> "Progress":
        """One optimizer step further."""
        return replace(
            self,
            step=self.step + 1,
            tokens=self.tokens + size.tokens,
            trained_tokens=self.trained_tokens + size.trained_tokens,
            evaluated=False,
        )


def checkpoint_path(folder: Path, step: int) -> Path:
    """Where the checkpoint after `step` steps is committed."""
    return folder / f"step-{step:08d}"


def commit_checkpoint(
    engine: Any, folder: Path, progress: Progress, probe: dict[str, Any], world: World, settings: CheckpointConfig
) -> Path:
    """Write a checkpoint; all ranks call it, and return when it is committed.

    Args:
        folder: the run's `checkpoints`.
        probe: tokens and logits of the trained model (the same on all ranks).
        settings: older checkpoints that they do not keep are deleted after the new one is committed.

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
        best = best_checkpoint(folder) if settings.keep_best else None
        for old in committed_checkpoints(folder)[: -settings.keep_last]:
            if old != best:
                shutil.rmtree(old)
    world.barrier()
    return final


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
    engine: Any, folder: Path, plan_hash: str, model_hash: str, train: TrainConfig, world: World
) -> Progress | None:
    """Load the newest good checkpoint into the engine, on all ranks alike; None when there is none to load.

    Raises:
        UserError: it belongs to another plan or model, or cannot be loaded on these ranks.
    """
    path = newest_good_checkpoint(folder, world)
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


def committed_checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return sorted(path.parent for path in folder.glob(f"step-*/{COMMIT}") if path.parent.suffix == "")


def best_checkpoint(folder: Path) -> Path | None:
    """The checkpoint with the lowest validation loss (the first of equal ones) among those that were evaluated."""
    evaluated = [
        (progress.validations[-1][1], progress.step, path)
        for path in committed_checkpoints(folder)
        if (progress := read_progress(path)).evaluated and progress.validations
    ]
    return min((found for found in evaluated if found[0] == found[0]), default=(0, 0, None))[-1]


def newest_good_checkpoint(folder: Path, world: World) -> Path | None:
    """The newest checkpoint whose files are what was written; newer ones are renamed to `….damaged`.

    All ranks call it, and find the same one.

    Raises:
        UserError: there are checkpoints, but all are damaged.
    """
    found: list[Path] = from_main(world, committed_checkpoints(folder))
    for path in reversed(found):
        if (damage := find_damage(path, world)) is None:
            return path
        if world.is_main:
            print(f"{path} is damaged ({damage}); trying the one before", flush=True)
            shutil.rmtree(aside := path.with_name(path.name + ".damaged"), ignore_errors=True)
            os.rename(path, aside)
    if found:
        raise UserError(f"all checkpoints in {folder} were damaged; delete them to begin again")
    return None


def read_progress(checkpoint: Path) -> Progress:
    """What the commit record says of the run.

    Raises:
        UserError: another version wrote it.
    """
    record = json.loads((checkpoint / COMMIT).read_text(encoding="utf-8"))
    if missing := [name for name in Progress.__dataclass_fields__ if name not in record]:
        raise UserError(f"{checkpoint / COMMIT} has no {missing[0]}: another version wrote it; use another run name")
    validations = tuple((step, loss) for step, loss in record["validations"])
    return Progress(**{**{name: record[name] for name in Progress.__dataclass_fields__}, "validations": validations})


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
