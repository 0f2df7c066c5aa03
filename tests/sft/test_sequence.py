"""Sequence parallelism: ranks that share rows learn what one rank learns, and their parts make up the batch."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data_tools.errors import UserError
from data_tools.plan import PackPlan
from data_tools.store import TokenStore
from sft.batches import make_batch, split_batch
from sft.config import TrainConfig
from sft.schedule import micro_batches_per_step
from sft.sequence import SequenceGroup
from sft.world import World
from tests.ranks import run_ranks
from tests.sft.models import labels_of, weights_of


@settings(deadline=None, max_examples=30)
@given(size=st.integers(1, 5), first=st.integers(0, 20), count=st.integers(0, 3), weighted=st.booleans())
def test_the_parts_make_up_the_batch(
    store: TokenStore, weighted_store: TokenStore, plan: PackPlan, size: int, first: int, count: int, weighted: bool
) -> None:
    batch = make_batch(weighted_store if weighted else store, plan.train, np.arange(first, first + count))
    parts = [split_batch(batch, SequenceGroup(rank, size, 0, 1, None)) for rank in range(size)]
    length = batch.input_ids.shape[1]
    filler = -length % size
    assert len({part.input_ids.shape for part in parts}) == 1
    for whole, name in ((batch.input_ids, "input_ids"), (batch.positions, "positions")):
        assert torch.equal(torch.cat([getattr(part, name) for part in parts], 1)[:, :length], whole)
    assert torch.equal(torch.cat([labels_of(part) for part in parts], 1)[:, :length], labels_of(batch))
    assert torch.equal(torch.cat([weights_of(part) for part in parts], 1)[:, :length], weights_of(batch))
    assert torch.equal(torch.cat([part.targets.sources for part in parts]), batch.targets.sources)
    assert sum(part.tokens for part in parts) == batch.tokens
    for part in parts:
        assert part.borders.tolist() == batch.borders.tolist() + ([length + filler] if filler else [])
        assert part.longest == max(batch.longest, filler) and part.borders.dtype == torch.int32


def shared_rows(world: World, store: str, plan: str) -> dict[str, float]:
    """Errors of loss and gradient where two ranks share each row, by case."""
    from sft.attention import packed_attention
    from sft.sequence import join_sequence_group
    from tests.sft.test_exactness import errors, start, truth_of, uneven_packs

    tokens, table = TokenStore(Path(store)), PackPlan(Path(plan)).train
    group = join_sequence_group(world, 2)
    packs = uneven_packs(table, 2)
    batches = [split_batch(make_batch(tokens, table, packs[number : number + 1]), group) for number in range(2)]
    weight = float(table.weight[packs].sum())
    report = {}
    for tied, stage in ((True, 0), (True, 2), (False, 3)):
        engine = start(world, stage, tied, 2, sequence_parallel=2)
        found = errors(world, engine, batches, weight, truth_of(tokens, table, packs, tied))
        report[f"zero {stage}"] = max(found.values())

    torch.manual_seed(0)
    lengths = [5, 9, 2]
    borders = torch.tensor([0, 5, 14, 16], dtype=torch.int32)
    part = slice(world.rank * 8, world.rank * 8 + 8)
    for heads, of_keys, window in ((4, 2, None), (4, 1, None), (6, 3, 3), (2, 2, None)):
        query, key, value = (torch.randn(1, count, sum(lengths), 8) for count in (heads, of_keys, of_keys))
        where: dict[str, Any] = {"sliding_window": window, "cu_seq_lens_q": borders, "max_length_q": 9}
        module = torch.nn.Identity()
        alone, _ = packed_attention(module, query, key, value, None, **where)
        query, key, value = (tensor[:, :, part] for tensor in (query, key, value))
        where |= {"sequence_group": group}
        shared, _ = packed_attention(module, query, key, value, None, **where)
        report[f"{heads} heads, {of_keys} of keys"] = float((shared - alone[:, part]).abs().max())
    return report


def test_two_ranks_that_share_rows_equal_documents_alone(folders: dict[str, str]) -> None:
    for report in run_ranks(2, "tests.sft.test_sequence:shared_rows", **folders):
        assert len(report) == 7
        assert max(report.values()) < 1e-6, report


def settings_of(sequence_parallel: int) -> Any:
    return TrainConfig.model_validate({"packs_per_step": 6, "sequence_parallel": sequence_parallel})


def test_ranks_that_share_packs_make_more_micro_batches() -> None:
    assert micro_batches_per_step(settings_of(2), ranks=4) == 3
    with pytest.raises(UserError, match=r"train.sequence_parallel=3 does not divide 4 ranks"):
        micro_batches_per_step(settings_of(3), ranks=4)
