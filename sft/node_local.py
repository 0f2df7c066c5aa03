"""Run folders on disks of the nodes' own: which ranks share one. What they are for is said in `copies.py`."""

import uuid
from dataclasses import replace
from pathlib import Path

from sft.digests import from_main, gathered
from sft.world import World


def find_ranks_here(folder: Path, world: World) -> World:
    """Find out which ranks see the same run folder as this one; all ranks call it.

    A name of a host would not tell: containers of one machine may have disks of their own.
    """
    signs = folder / "nodes"
    signs.mkdir(exist_ok=True)
    token = from_main(world, uuid.uuid4().hex)
    own = signs / f"{token}-{world.rank}"
    own.touch()
    world.barrier()
    here = tuple(rank for rank in range(world.size) if (signs / f"{token}-{rank}").exists())
    world.barrier()
    own.unlink()
    return replace(world, here=here)


def keepers_of(world: World) -> tuple[int, ...]:
    """Of each folder of the run the rank that keeps it, the main one first; all ranks call it."""
    return tuple(rank for rank, keeps in enumerate(gathered(world, world.keeps_folder)) if keeps)
