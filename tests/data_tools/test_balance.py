"""Ranks work equally, the order stays random, and every epoch has every pack once."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_tools.balance import ATTENTION_COST, NO_PACK, costliest_first, imbalance, order_of_epoch, share_out
from data_tools.hashing import keyed_hashes
from data_tools.packing import pack_documents


def costs_of_packs(count: int, cap: int, seed: int = 0) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Packs of lengths with a heavy tail."""
    lengths = np.clip(np.random.default_rng(seed).lognormal(6.5, 1.3, count), 20, cap).astype(np.int64)
    packs = pack_documents(lengths, cap)
    costs: np.ndarray[tuple[int], np.dtype[np.float64]] = packs.sums(lengths) + ATTENTION_COST * packs.sums(lengths**2)
    return costs


@given(st.lists(st.floats(1, 1e6), min_size=1, max_size=100), st.integers(1, 12), st.integers(0, 3))
def test_an_epoch_has_every_pack_once(costs: list[float], packs_per_step: int, epoch: int) -> None:
    order = order_of_epoch(np.array(costs), packs_per_step, 0, epoch)
    assert sorted(order.tolist()) == list(range(len(costs)))


@given(st.lists(st.floats(1, 1e6), min_size=1, max_size=100), st.integers(1, 12), st.integers(0, 3))
def test_a_run_begins_with_the_costliest_pack_of_a_complete_step(
    costs: list[float], packs_per_step: int, seed: int
) -> None:
    values = np.array(costs)
    order = order_of_epoch(values, packs_per_step, seed, 0)
    complete = values[order[: len(costs) // packs_per_step * packs_per_step]]
    assert complete[:packs_per_step].max(initial=0) == complete.max(initial=0)


def test_only_in_later_epochs_the_incomplete_step_may_have_the_costliest_packs() -> None:
    costs = np.linspace(100, 200, 83)
    for seed in range(40):
        assert costs[order_of_epoch(costs, 8, seed, 0)[:8]].max() > 198


@pytest.mark.parametrize("ranks", [8, 64])
@pytest.mark.parametrize("cap", [4096, 32768])
def test_ranks_work_equally_where_random_order_lets_them_wait(ranks: int, cap: int) -> None:
    costs = costs_of_packs(1_500 * ranks * cap // 32768 * (8 if cap == 4096 else 1), cap)
    steps = len(costs) // ranks
    order = order_of_epoch(costs, ranks, 0, 0)[: steps * ranks].reshape(steps, ranks)
    random = np.random.default_rng(0).permutation(len(costs))[: steps * ranks].reshape(steps, ranks)
    ours = 1 - imbalance(costs, costliest_first(order, costs), ranks, 1)
    assert ours >= 0.99
    assert ours > 1 - imbalance(costs, costliest_first(random, costs), ranks, 1) + 0.01


def test_costly_and_cheap_steps_alternate_at_random() -> None:
    costs = costs_of_packs(40_000, 8192)
    order = order_of_epoch(costs, 16, 0, 0)
    means = costs[order[: len(order) // 16 * 16]].reshape(-1, 16).mean(axis=1)
    assert abs(np.corrcoef(means[:-1], means[1:])[0, 1]) < 0.15


def test_steps_of_another_epoch_have_other_packs() -> None:
    costs = costs_of_packs(60_000, 4096)

    def mates(epoch: int) -> set[tuple[int, int]]:
        order = order_of_epoch(costs, 8, 0, epoch)
        steps = order[: len(order) // 8 * 8].reshape(-1, 8)
        return {(int(a), int(b)) for step in steps for a in step for b in step if a < b}

    assert len(mates(0) & mates(1)) < 0.3 * len(mates(0))
    assert not np.array_equal(order_of_epoch(costs, 8, 0, 0), order_of_epoch(costs, 8, 1, 0))


def test_the_incomplete_step_is_not_always_the_cheapest_or_costliest() -> None:
    costs = np.linspace(100, 200, 83)
    last = [costs[order_of_epoch(costs, 8, 0, epoch)[-3:]].mean() for epoch in range(40)]
    assert min(last) < 125
    assert max(last) > 175


def test_costly_packs_run_at_the_same_time() -> None:
    costs = np.arange(16)[::-1]
    dealt = share_out(costs, ranks=2, packs_per_micro_batch=2)
    assert dealt.shape == (4, 2, 2)
    assert dealt[0].sum(axis=0).tolist() == [15 + 12, 14 + 13]


def test_imbalance_is_one_minus_mean_over_max() -> None:
    costs = np.array([4.0, 3.0, 2.0, 1.0])
    assert imbalance(costs, np.array([[0, 1, 2, 3]]), 2, 1) == pytest.approx(1 - (3.5 + 1.5) / (4 + 2))
    assert imbalance(costs, np.array([[0, 1, 2, 3]]), 2, 2) == 0
    idle = np.array([[0, 1, 2, NO_PACK]])
    assert imbalance(costs, idle, 2, 1) == pytest.approx(1 - (3.5 + 1) / (4 + 2)), "a rank without a pack waits"
    assert imbalance(costs, idle[:0], 2, 1) == 0
    assert costliest_first(np.array([2, NO_PACK, 0]), costs).tolist() == [0, 2, NO_PACK]


def test_hashes_are_the_same_everywhere() -> None:
    """splitmix64 with a key, computed with Python's own integers."""
    import hashlib

    def splitmix(number: int, key: str) -> int:
        bits = 2**64 - 1
        x = (number * 0x9E3779B97F4A7C15 + int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "little")) & bits
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & bits
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & bits
        return x ^ (x >> 31)

    numbers = [0, 1, 2**63, 2**64 - 1]
    got = keyed_hashes(np.array(numbers, np.uint64), 3, "name")
    assert got.tolist() == [splitmix(number, "3/name") for number in numbers]
