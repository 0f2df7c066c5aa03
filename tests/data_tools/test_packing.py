"""Nothing lost, nothing twice, no pack over its capacity, and no more packs than best-fit decreasing makes."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_tools.packing import pack_documents, stable_order


def best_fit_decreasing(lengths: list[int], capacity: int) -> int:
    """The textbook algorithm, one document at a time: the number of packs."""
    spaces: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = [space for space in spaces if space >= length]
        if fitting:
            spaces.remove(min(fitting))
            spaces.append(min(fitting) - length)
        else:
            spaces.append(capacity - length)
    return len(spaces)


@given(st.lists(st.integers(1, 40), max_size=120))
def test_every_document_is_in_exactly_one_pack_that_holds_it(lengths: list[int]) -> None:
    packs = pack_documents(np.array(lengths, dtype=np.int32), capacity=40)
    assert sorted(packs.documents.tolist()) == list(range(len(lengths)))
    assert all(sum(lengths[d] for d in packs[p]) <= 40 for p in range(len(packs)))
    assert all(len(packs[p]) for p in range(len(packs)))
    assert len(packs) <= best_fit_decreasing(lengths, 40)


@given(st.lists(st.integers(1, 5000), max_size=60), st.sampled_from([5000, 70_000]))
def test_capacities_of_many_bits(lengths: list[int], capacity: int) -> None:
    lengths = lengths + [capacity - length for length in lengths[::3] if length < capacity]
    packs = pack_documents(np.array(lengths, dtype=np.int32), capacity)
    assert sorted(packs.documents.tolist()) == list(range(len(lengths)))
    assert (packs.sums(np.array(lengths, dtype=np.int64)) <= capacity).all()
    assert len(packs) <= best_fit_decreasing(lengths, capacity)


@given(st.lists(st.integers(0, 2**32 - 1), max_size=50), st.integers(1, 2**32 - 1))
def test_the_order_of_keys_is_that_of_a_stable_sort(keys: list[int], modulus: int) -> None:
    numbers = np.array([key % modulus for key in keys], np.uint32)
    assert stable_order(numbers, modulus).tolist() == np.argsort(numbers, kind="stable").tolist()


@given(st.lists(st.integers(1, 40), max_size=120))
def test_sums_add_up_by_pack(lengths: list[int]) -> None:
    values = np.array(lengths, dtype=np.int64) * 3
    packs = pack_documents(np.array(lengths, dtype=np.int64), capacity=40)
    assert packs.sums(values).tolist() == [int(values[packs[p]].sum()) for p in range(len(packs))]


@given(st.lists(st.integers(1, 20), min_size=1, max_size=9))
def test_packs_that_can_all_be_full_are_not_more_than_best_fit_makes(borders: list[int]) -> None:
    """Pieces of full packs, which best-fit decreasing does not always put together again."""
    pieces = [np.diff(sorted({0, 20, border, border * 7 % 20})).tolist() for border in borders]
    lengths = [length for pack in pieces for length in pack]
    packs = pack_documents(np.array(lengths, dtype=np.int32), capacity=20)
    assert sorted(packs.documents.tolist()) == list(range(len(lengths)))
    assert (packs.sums(np.array(lengths)) <= 20).all()
    assert len(borders) <= len(packs) <= best_fit_decreasing(lengths, 20)


def test_packs_taken_apart_are_fewer_than_best_fit_makes() -> None:
    lengths = np.array([4, 3, 2, 4, 3, 2], dtype=np.int32)
    assert best_fit_decreasing(lengths.tolist(), 9) == 3
    packs = pack_documents(lengths, capacity=9)
    assert [lengths[packs[p]].tolist() for p in range(len(packs))] == [[4, 3, 2], [4, 3, 2]]
    assert sorted(packs.documents.tolist()) == list(range(6))


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(("mean", "deviation"), [(6.2, 0.9), (7.2, 1.0)])
def test_many_documents_leave_almost_no_space(mean: float, deviation: float, seed: int) -> None:
    """Of the second distribution, best-fit decreasing makes up to 0.024 % more packs."""
    lengths = np.clip(np.random.default_rng(seed).lognormal(mean, deviation, 100_000), 20, 4096).astype(np.int64)
    packs = pack_documents(lengths, capacity=4096)
    fewest = math.ceil(lengths.sum() / 4096)
    assert fewest > 10_000
    assert len(packs) <= fewest * 1.0002
    assert np.bincount(packs.documents, minlength=len(lengths)).tolist() == [1] * len(lengths)
    assert packs.sums(lengths).max() <= 4096


def test_both_the_worst_filled_and_the_last_packs_are_packed_again() -> None:
    """Of these lengths the fewest packs that can be; each half alone leaves some more."""
    long = np.clip(np.random.default_rng(2).lognormal(7.2, 1.0, 20_000), 20, 4096).astype(np.int64)
    short = np.random.default_rng(0).integers(25, 250, 9_000)
    for lengths, capacity in ((long, 4096), (short, 512)):
        packs = pack_documents(lengths, capacity)
        assert packs.sums(lengths).max() <= capacity
        assert np.bincount(packs.documents, minlength=len(lengths)).tolist() == [1] * len(lengths)
        assert len(packs) == math.ceil(lengths.sum() / capacity)
        assert len(packs) > 2_000, "more than are taken apart"


def test_the_same_lengths_give_the_same_packs() -> None:
    lengths = np.random.default_rng(1).integers(25, 250, 9_000)  # of which packs are taken apart
    assert len(pack_documents(lengths, 512)) < best_fit_decreasing(lengths.tolist(), 512)
    first, second = pack_documents(lengths, 512), pack_documents(lengths, 512)
    assert (first.documents == second.documents).all()
    assert (first.offsets == second.offsets).all()
