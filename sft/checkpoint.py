"""Checkpoints that are whole or not there.

    checkpoints/step-00000200/          appears under this name when it is complete
        state/                          DeepSpeed's files, one set per rank
        rank-00000.pt                   random number states of a rank
        probe.pt                        some logits of the trained model, for exports to compare with
        commit.json                     written last: step, plan, ranks, and the size and BLAKE3 of every file

Everything is written in `step-00000200.partial`. Only when every rank has written and the record lists every file is
the folder renamed. DeepSpeed's own `latest` file is not used: it moves before all ranks have written.
"""

import json
import os
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from data_tools.errors import UserError
from data_tools.plan import StepSize
from data_tools.store import file_digest, fsync_folder, write_json
from sft.config_watch import CheckpointConfig
from sft.engine import load_engine, save_engine
from sft.world import World

COMMIT = "commit.json"


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
    """
    final = checkpoint_path(folder, progress.step)
    partial = final.with_name(final.name + ".partial")
    if world.is_main:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    world.barrier()
    save_engine(engine, partial)
    torch.save(_random_states(), partial / f"rank-{world.rank:05d}.pt")
    world.barrier()
    if world.is_main:
        torch.save(probe, partial / "probe.pt")
        files = {
            str(path.relative_to(partial)): _describe(path) for path in sorted(partial.rglob("*")) if path.is_file()
        }
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


def resume(engine: Any, folder: Path, plan_hash: str, zero_stage: int, world: World) -> Progress | None:
    """Load the newest good checkpoint into the engine, on all ranks alike; None when there is none to load.

    Raises:
        UserError: it belongs to another plan, ZeRO stage or number of ranks.
    """
    chosen: list[str | UserError | None] = [None]
    if world.is_main:
        try:
            newest = newest_good_checkpoint(folder)
            chosen = [None if newest is None else newest.name]
        except UserError as error:
            chosen = [error]  # for all ranks: none may wait for the others
    if world.size > 1:
        dist.broadcast_object_list(chosen, src=0)
    if isinstance(chosen[0], UserError):
        raise chosen[0]
    if chosen[0] is None:
        return None
    path = folder / chosen[0]
    progress = read_progress(path)
    if progress.plan_hash != plan_hash:
        raise UserError(f"{path} belongs to another pack plan: the data or its order changed; use another run name")
    if (progress.zero_stage, progress.ranks) != (zero_stage, world.size):
        raise UserError(
            f"{path} was written by {progress.ranks} ranks with ZeRO stage {progress.zero_stage}; "
            f"resume with the same (this run has {world.size} ranks and stage {zero_stage})"
        )
    load_engine(engine, path)
    _restore_random_states(torch.load(path / f"rank-{world.rank:05d}.pt", weights_only=True))
    return progress


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


def newest_good_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint whose files are what was written; newer ones are renamed to `….damaged`.

    Raises:
        UserError: there are checkpoints, but all are damaged.
    """
    found = committed_checkpoints(folder)
    for path in reversed(found):
        if (damage := find_damage(path)) is None:
            return path
        print(f"{path} is damaged ({damage}); trying the one before", flush=True)
        shutil.rmtree(aside := path.with_name(path.name + ".damaged"), ignore_errors=True)
        os.rename(path, aside)
    if found:
        raise UserError(f"all checkpoints in {folder} were damaged; delete them to begin again")
    return None


def find_damage(checkpoint: Path) -> str | None:
    """Compare every file with the commit record; what is wrong, or None."""
    try:
        record = json.loads((checkpoint / COMMIT).read_text(encoding="utf-8"))
    except ValueError:
        return f"{COMMIT} is not JSON"
    for name, expected in record["files"].items():
        path = checkpoint / name
        if not path.exists():
            return f"{name} is missing"
        if _describe(path) != expected:
            return f"{name} was changed"
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


def _describe(path: Path) -> dict[str, Any]:
    with open(path, "rb") as file:
        os.fsync(file.fileno())
    return {"bytes": path.stat().st_size, "blake3": file_digest(path)}


def _random_states() -> dict[str, Any]:
    cuda = torch.cuda.get_rng_state() if torch.cuda.is_available() else None
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def _restore_random_states(states: dict[str, Any]) -> None:
    torch.set_rng_state(states["cpu"])
    if states["cuda"] is not None:
        torch.cuda.set_rng_state(states["cuda"])
