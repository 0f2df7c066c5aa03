"""What packs cost → which packs make a step, and which rank takes which: ranks that wait for each other work equally.

All ranks go through a micro-batch together (with ZeRO-3, layer by layer), so each takes as long as its slowest rank.
Packs of equally many tokens do not cost the same, because attention within a document grows with its square:

    cost of a pack = tokens + a · Σ length²          in tokens; a = attention_cost, from the model

So a step is made of packs that are neighbours in cost, and within it a micro-batch is too; the order of the steps is
random, but a run begins with the step of the costliest pack: what does not fit into memory fails at once. The price:
the packs of a step are more alike than chance would make them, in the lengths of their documents. Against that,
neighbours mix anew in every epoch: packs change places when their costs differ by less than `TOLERANCE`, or when they
are less than `PLACES` of a step apart.
"""

import numpy as np
from numpy.typing import NDArray

from data_tools.hashing import keyed_hashes, shuffled

NO_PACK = -1
"""Fills the places of a step that has fewer packs than `packs_per_step`, the last one of an epoch."""
ATTENTION_COST = 32 * 4096 / 7.5e9
"""Layers · hidden size / parameters of Llama 8B: 6·layers·hidden operations a token pair, 6·parameters a token."""
TOLERANCE = 0.0025
"""A share of the cost: what mixing costs in time at most. Where many packs cost about the same, they mix over many
steps."""
PLACES = 0.125
"""A share of a step: where few packs cost the same, some of them still change steps."""


def order_of_epoch(costs: NDArray[np.float64], packs_per_step: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """All packs, step after step: neighbours in cost within a step, steps in random order, an incomplete one last.

    The first epoch begins with the complete step that has the costliest pack.
    """

    def chance(name: str) -> NDArray[np.float64]:
        """In [-1, 1), for every pack."""
        return keyed_hashes(np.arange(len(costs), dtype=np.uint64), seed, epoch, name) / 2.0**63 - 1

    by_cost = np.argsort(costs * (1 + TOLERANCE * chance("cost")), kind="stable")
    moved = np.arange(len(costs)) + PLACES * packs_per_step * chance("place")
    by_cost = by_cost[np.argsort(moved, kind="stable")]
    steps, rest = divmod(len(costs), packs_per_step)
    # The incomplete step is taken from anywhere: left at an end, it would always have the cheapest or costliest packs.
    # Only in the first epoch the costliest packs are in a complete step, which comes first.
    places = steps if epoch == 0 and steps else steps + 1
    start = int(shuffled(places, seed, epoch, "incomplete")[0]) * packs_per_step
    incomplete = by_cost[start : start + rest]
    complete = np.concatenate([by_cost[:start], by_cost[start + rest :]]).reshape(steps, packs_per_step)
    complete = complete[shuffled(steps, seed, epoch, "steps")]
    if epoch == 0 and steps:
        complete = np.roll(complete, -int(costs[complete].max(axis=1).argmax()), axis=0)
    return np.concatenate([complete.reshape(-1), incomplete])


def costliest_first(packs: NDArray[np.int64], costs: NDArray[np.float64]) -> NDArray[np.int64]:
    """The packs of each step, [..., packs], by falling cost; `NO_PACK` comes last."""
    order = np.argsort(-np.where(packs == NO_PACK, 0, costs[packs]), axis=-1, kind="stable")
    return np.take_along_axis(packs, order, axis=-1)


def share_out(packs: NDArray[np.int64], ranks: int, packs_per_micro_batch: int) -> NDArray[np.int64]:
    """Deal the packs of steps, sorted by cost, to micro-batches.

    Neighbours in cost run at the same time, and every second row is dealt backwards: ranks wait little for each other.

    Args:
        packs: [..., packs per step]

    Returns:
        [..., micro-batches, packs per micro-batch, ranks]
    """
    dealt = packs.reshape(*packs.shape[:-1], -1, packs_per_micro_batch, ranks).copy()
    dealt[..., 1::2, :] = dealt[..., 1::2, ::-1]
    return dealt


def imbalance(costs: NDArray[np.float64], steps: NDArray[np.int64], ranks: int, packs_per_micro_batch: int) -> float:
    """How long ranks wait for the slowest: 1 - mean / max of the cost over ranks, of all micro-batches together.

    Args:
        steps: [steps, packs per step], the costliest first.
    """
    if not steps.size:
        return 0.0
    dealt = share_out(steps, ranks, packs_per_micro_batch)
    by_rank = np.where(dealt == NO_PACK, 0, costs[dealt]).sum(axis=-2)
    return float(1 - by_rank.mean(axis=-1).sum() / by_rank.max(axis=-1).sum())
