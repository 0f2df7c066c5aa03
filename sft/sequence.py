"""Sequence parallelism: ranks share a packed row (Ulysses, arXiv 2309.14509).

Each rank of a group holds a part of the row's tokens and takes them through all layers. In attention they exchange:
each gets all tokens for a part of the heads, attends within documents as ever, and gives back what belongs to others.
To ZeRO every rank stays a data-parallel rank of its own, so the loss equation (`loss.py`) stands as it is.

ranks       0 1 | 2 3         sequence_parallel 2: two groups
packs       A A | B B         each group shares its micro-batches
tokens of A first half, second half
"""

import math
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch.distributed.nn.functional import all_to_all_single

from sft.world import World


@dataclass(frozen=True)
class SequenceGroup:
    """The ranks that share rows, seen from one of them."""

    rank: int
    """This rank's place in its group."""
    size: int
    """Ranks in a group; 1: nothing is shared."""
    data_rank: int
    """The place of the group among all groups: which packs it gets."""
    data_ranks: int
    """How many groups there are."""
    ranks: dist.ProcessGroup | None
    """How the group talks; None where it has one rank."""


def join_sequence_group(world: World, size: int) -> SequenceGroup:
    """Form groups of neighbouring ranks; all ranks call it."""
    groups = world.size // size
    # Every rank has to make every group.
    made = (
        [dist.new_group(list(range(first, first + size))) for first in range(0, world.size, size)] if size > 1 else []
    )
    own = world.rank // size
    return SequenceGroup(world.rank % size, size, own, groups, made[own] if made else None)


def all_tokens(tensor: torch.Tensor, group: SequenceGroup) -> torch.Tensor:
    """[1, heads, T / size, d] of own tokens → [1, heads / size, T, d] of own heads.

    Heads that are too few (of keys and values) are repeated first, so that each rank gets those of its queries.
    """
    heads, tokens, width = tensor.shape[1:]
    repeats = math.lcm(heads, group.size) // heads
    parts = tensor[0].repeat_interleave(repeats, 0) if repeats > 1 else tensor[0]
    received = _exchange(parts.reshape(group.size, heads * repeats // group.size, tokens, width), group)
    return received.transpose(0, 1).reshape(1, -1, group.size * tokens, width)


def all_heads(tensor: torch.Tensor, group: SequenceGroup) -> torch.Tensor:
    """[1, T, heads / size, d] of own heads → [1, T / size, heads, d] of own tokens."""
    tokens, heads, width = tensor.shape[1:]
    received = _exchange(tensor.reshape(group.size, tokens // group.size, heads, width), group)
    return received.transpose(0, 1).reshape(1, tokens // group.size, group.size * heads, width)


def _exchange(parts: torch.Tensor, group: SequenceGroup) -> torch.Tensor:
    """Part i goes to rank i of the group; what comes from rank i is part i. Gradients go back the same way."""
    parts = parts.contiguous()
    received: torch.Tensor = all_to_all_single(torch.empty_like(parts), parts, group=group.ranks)
    return received
