"""The loss on documents that are not trained on."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from data_tools.balance import costliest_first
from data_tools.plan import PackPlan
from data_tools.store import TokenStore
from sft.batches import make_batch
from sft.loss import COUNT, ENTROPY, LOSS, RIGHT, WEIGHT, sums_by_source
from sft.world import World


@torch.no_grad()
def validate(
    model: Any, store: TokenStore, plan: PackPlan, world: World, between: Callable[[], None]
) -> dict[str, float]:
    """Metrics of all trained tokens of the validation packs, over all ranks; empty where there are no packs.

    validation_loss                   Σ loss · weight / Σ weight
    perplexity                        e to that
    validation_mean_token_accuracy    tokens predicted rightly / tokens
    validation_entropy                mean entropy of the predictions, in nats
    validation_loss/SOURCE            the loss of each source, where there are several

    Every rank takes every W-th pack, the costliest first, and an empty one where there is none left: ZeRO-3 needs all
    ranks in every pass.

    Args:
        model: `PackedCausalLM` or the engine around it; it is in training mode afterwards.
        between: called before each pass; it may raise.
    """
    packs = len(plan.validation)
    if not packs:
        return {}
    sources = [source["name"] for source in store.manifest["sources"]]
    sums = torch.zeros(len(sources), 5, dtype=torch.float64, device=world.device)
    order = costliest_first(np.arange(packs), plan.validation.cost)
    model.eval()
    try:
        for first in range(0, packs, world.size):
            between()
            mine = order[first + world.rank : first + world.rank + 1]
            batch = make_batch(store, plan.validation, mine).to(world.device)
            _, stats = model(*batch.model_inputs)
            sums += sums_by_source(stats, batch.targets)
    finally:
        model.train()
    return _metrics_of(np.array(world.sum(*sums.flatten().unbind())).reshape(sums.shape), sources)


def _metrics_of(sums: NDArray[np.float64], sources: Sequence[str]) -> dict[str, float]:
    """sums [S, 5] of `sums_by_source` → metrics."""
    totals = sums.sum(0)
    loss = totals[LOSS] / totals[WEIGHT]
    metrics = {
        "validation_loss": loss,
        "perplexity": math.exp(min(loss, 700.0)),
        "validation_mean_token_accuracy": totals[RIGHT] / totals[COUNT],
        "validation_entropy": totals[ENTROPY] / totals[COUNT],
    }
    of_sources = {
        f"validation_loss/{name}": of_source[LOSS] / of_source[WEIGHT]
        for name, of_source in zip(sources, sums, strict=True)
        if of_source[WEIGHT]
    }
    if len(of_sources) > 1:
        metrics |= of_sources
    return {name: float(value) for name, value in metrics.items()}
