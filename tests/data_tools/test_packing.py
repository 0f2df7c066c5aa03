"""Nothing lost, nothing twice, no pack over its capacity, and as few packs as best-fit decreasing makes."""

import math

import numpy as np
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
    assert len(packs) == best_fit_decreasing(lengths, 40)


@given(st.lists(st.integers(1, 5000), max_size=60), st.sampled_from([5000, 70_000]))
def test_capacities_of_many_bits(lengths: list[int], capacity: int) -> None:
    lengths = lengths + [capacity - length for length in lengths[::3] if length < capacity]
    packs = pack_documents(np.array(lengths, dtype=np.int32), capacity)
    assert sorted(packs.documents.tolist()) == list(range(len(lengths)))
    assert (packs.sums(np.array(lengths, dtype=np.int64)) <= capacity).all()
    assert len(packs) == best_fit_decreasing(lengths, capacity)


@given(st.lists(st.integers(0, 2**32 - 1), max_size=50), st.integers(1, 2**32 - 1))
def test_the_order_of_keys_is_that_of_a_stable_sort(keys: list[int], modulus: int) -> None:
    numbers = np.array([key % modulus for key in keys], np.uint32)
    assert stable_order(numbers, modulus).tolist() == np.argsort(numbers, kind="stable").tolist()


@given(st.lists(st.integers(1, 40), max_size=120))
def test_sums_add_up_by_pack(lengths: list[int]) -> None:
    values = np.array(lengths, dtype=np.int64) * 3
    packs = pack_documents(np.array(lengths, dtype=np.int64), capacity=40)
    assert packs.sums(values).tolist() == [int(values[packs[p]].sum()) for p in range(len(packs))]


def test_many_documents_leave_almost_no_space() -> None:
    lengths = np.clip(np.random.default_rng(0).lognormal(6.2, 0.9, 100_000), 1, 4096).astype(np.int64)
    packs = pack_documents(lengths, capacity=4096)
    fewest = math.ceil(lengths.sum() / 4096)
    assert fewest > 10_000
    assert len(packs) <= fewest * 1.0002


def test_the_same_lengths_give_the_same_packs() -> None:
    lengths = np.random.default_rng(1).integers(1, 500, 5_000)
    first, second = pack_documents(lengths, 512), pack_documents(lengths, 512)
    assert (first.documents == second.documents).all()
    assert (first.offsets == second.offsets).all()
