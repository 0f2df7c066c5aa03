"""The size and BLAKE3 of every file of a checkpoint, each made and compared by one of the ranks."""

import json
import os
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch.distributed as dist

from data_tools.store import file_digest, fsync_folder
from sft.world import World

_RANK = re.compile(r"(?<!mp_)rank[-_]?(\d+)")
COMMIT = "commit.json"
"""The record of a checkpoint, which lists all other files."""


def gathered(world: World, value: Any) -> list[Any]:
    """What every rank has to say, on all ranks."""
    if world.size == 1:
        return [value]
    values: list[Any] = [None] * world.size
    dist.all_gather_object(values, value)
    return values


def from_main(world: World, value: Any) -> Any:
    """What the main rank has to say, on all ranks."""
    if world.size == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


def describe_files(folder: Path, world: World) -> dict[str, dict[str, Any]]:
    """Make all files and folders survive a crash of the machine, and describe them, by name; all ranks call it.

    Each rank reads what it wrote, which is still in its machine's memory.
    """
    own = [name for name in file_names(folder) if writer(name) % world.size == world.rank]
    described = {name: _describe(folder / name) for name in own}
    if world.keeps_folder:
        for path in (folder, *folder.rglob("*")):
            if path.is_dir():
                fsync_folder(path)
    together = {name: facts for part in gathered(world, described) for name, facts in part.items()}
    return dict(sorted(together.items()))


def find_damage(checkpoint: Path, world: World) -> str | None:
    """Compare every file with the commit record; what is wrong, or None. All ranks call it, and each reads a share.

    Nothing is unpickled, and nothing that the record does not list may lie there: DeepSpeed would read that too.
    """
    problem, files = from_main(world, _read_record(checkpoint) if world.is_main else None)
    if problem:
        return str(problem)
    own = [name for number, name in enumerate(sorted(files)) if number % world.size == world.rank]
    found = gathered(
        world, next((wrong for name in own if (wrong := what_is_wrong(checkpoint, name, files[name]))), None)
    )
    return next((wrong for wrong in found if wrong), None)


def _read_record(checkpoint: Path) -> tuple[str | None, dict[str, dict[str, Any]]]:
    try:
        files: dict[str, dict[str, Any]] = json.loads((checkpoint / COMMIT).read_text(encoding="utf-8"))["files"]
    except (ValueError, LookupError, TypeError):
        return f"{COMMIT} is not what was written", {}
    added = sorted(set(file_names(checkpoint)) - set(files))
    return (f"{added[0]} was added" if added else None), files


def what_is_wrong(checkpoint: Path, name: str, expected: dict[str, Any]) -> str | None:
    """What makes a file another than the commit record says; None: nothing."""
    path = checkpoint / name
    if not path.is_file():
        return f"{name} is missing"
    if path.stat().st_size != expected["bytes"] or file_digest(path) != expected["blake3"]:
        return f"{name} was changed"
    return None


def file_names(folder: Path) -> list[str]:
    """All files below a checkpoint's folder but its record."""
    names = (str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    return sorted(name for name in names if name != COMMIT)


def writer(name: str) -> int:
    """The rank that wrote a file, by its name; 0 for what exists once.

    rank-00003.pt   state/zero_pp_rank_3_mp_rank_00_optim_states.pt
    """
    match = _RANK.search(name)
    return int(match[1]) if match else 0


def read_by(name: str, ranks: Collection[int]) -> bool:
    """Whether these ranks read a file, where as many go on as wrote it: their own, and what exists once."""
    match = _RANK.search(name)
    return match is None or int(match[1]) in ranks


def _describe(path: Path) -> dict[str, Any]:
    with open(path, "rb") as file:
        os.fsync(file.fileno())
    return {"bytes": path.stat().st_size, "blake3": file_digest(path)}
