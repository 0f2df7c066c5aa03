"""The newest good checkpoint of a run: here, or where copies are."""

import os
import shutil
from pathlib import Path

from data_tools.errors import UserError
from sft.copies import Copies
from sft.digests import COMMIT, find_damage, from_main, gathered
from sft.progress import committed_checkpoints
from sft.world import World


def newest_good_checkpoint(
    folder: Path, world: World, copies: Copies | None = None, reading: bool = False
) -> Path | None:
    """The newest checkpoint whose files are what was written; newer ones are renamed to `….damaged`.

    Copies of newer checkpoints than there are here are fetched. All ranks call it, and find the same one.

    Args:
        reading: the run may be training meanwhile; nothing is renamed.

    Raises:
        UserError: there are checkpoints, but all are damaged, or copies that may be there cannot be reached.
    """
    there, trouble = from_main(world, _copied(copies))
    if len(world.ranks_here) < world.size:
        return _newest_copy(there, trouble, folder, world, copies)
    if world.is_main and not reading:
        _finish_renames(folder)
    passed: set[Path] = set()
    while True:
        here: list[Path] = from_main(world, [path for path in committed_checkpoints(folder) if path not in passed])
        if there and (not here or there[-1] > here[-1].name):
            trouble = bring(there.pop(), folder, world, copies)
        elif not here:
            break
        elif (damage := find_damage(here[-1], world)) is None:
            return here[-1]
        else:
            _pass_over(here[-1], damage, reading, world)
            passed.add(here[-1])
    if trouble:
        raise UserError(f"{folder} has no good checkpoint, and none could be fetched: {trouble}")
    if passed or from_main(world, any(folder.glob("step-*.damaged"))):
        raise UserError(f"all checkpoints in {folder} were damaged; delete them to begin again")
    return None


def _finish_renames(folder: Path) -> None:
    """A kill may have come between the commit record of a checkpoint and its name."""
    for partial in folder.glob("step-*.partial"):
        if (partial / COMMIT).exists() and not partial.with_suffix("").exists():
            os.rename(partial, partial.with_suffix(""))


def _copied(copies: Copies | None) -> tuple[list[str], str]:
    """The names of copies, and why they cannot be told."""
    if copies is None:
        return [], ""
    try:
        return copies.names(), ""
    except UserError as error:
        print(f"{error}; going on with what is here", flush=True)
        return [], str(error)


def bring(name: str, folder: Path, world: World, copies: Copies | None, whole: bool = True) -> str:
    """Fetch a copy into the folder of checkpoints; returns why it could not be. No rank waits for it in one collective,
    which would end after a time.

    Args:
        whole: all of it, and not only what the ranks that share this folder read on as many ranks.
    """
    if copies is not None:
        if world.is_main:
            print(f"fetching {name} from {copies.location}", flush=True)
        copies.bring(name, folder, None if whole else world.ranks_here)
    while world.max(int(copies is not None and copies.wait(1.0))):
        pass
    trouble = next(filter(None, gathered(world, copies.trouble if copies is not None else "")), "")
    if trouble and world.is_main:
        print(f"{name} was not fetched: {trouble}; trying the one before", flush=True)
    return trouble


def _newest_copy(there: list[str], trouble: str, folder: Path, world: World, copies: Copies | None) -> Path | None:
    """The newest copy that can be fetched, each node its part. What nodes have of others was never put together."""
    wanted, found = bool(there), None
    while there and found is None:
        name = there.pop()
        trouble = bring(name, folder, world, copies, whole=False)
        found = None if trouble else folder / name
    if trouble or (wanted and found is None):
        raise UserError(f"no copy of a checkpoint of {folder.parent} could be fetched: {trouble}")
    if world.keeps_folder:
        for path in committed_checkpoints(folder):
            if found is None:
                print(f"{path} is a part of a checkpoint that was never copied whole; it is set aside", flush=True)
                shutil.rmtree(aside := path.with_name(path.name + ".uncopied"), ignore_errors=True)
                os.rename(path, aside)
            elif path.name > found.name:
                shutil.rmtree(path)
    return found


def _pass_over(checkpoint: Path, damage: str, reading: bool, world: World) -> None:
    if world.is_main:
        print(f"{checkpoint} is damaged ({damage}); trying the one before", flush=True)
        if not reading and checkpoint.exists():
            shutil.rmtree(aside := checkpoint.with_name(checkpoint.name + ".damaged"), ignore_errors=True)
            os.rename(checkpoint, aside)
    world.barrier()
