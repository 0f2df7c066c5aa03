"""Lengths → packs: best-fit decreasing on the histogram of lengths, over the whole data set at once.

From the longest on, each document goes into the fullest pack that still holds it: best-fit decreasing. Documents of one
length are interchangeable, and so are packs with the same space left, so both are moved in groups: the work grows with
the number of distinct lengths and spaces, not of documents (the idea of SPFHP, Krell and Kosec, arXiv 2107.02027; best
fit keeps documents whole, "Fewer Truncations Improve Language Modeling", arXiv 2404.10830).

    capacity 8, lengths [5 4 3 3 1]  →  [5 3] [4 3 1]

Space that no short document is left for stays empty. So the worst-filled packs are taken apart with the last ones,
whose short documents fill any space, and packed again: the longest first, with others that fill the rest of its pack
exactly (minimum bin slack, Gupta and Ho 1999). What comes out is kept where it is fewer packs.

    capacity 9, lengths [4 4 3 3 2 2]  →  [4 4] [3 3 2] [2]  →  [4 3 2] [4 3 2]
"""

from array import array
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Packs:
    """Documents grouped into packs: pack `p` holds `documents[offsets[p]:offsets[p + 1]]`."""

    documents: NDArray[np.integer]
    offsets: NDArray[np.integer]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, pack: int) -> NDArray[np.integer]:
        return self.documents[self.offsets[pack] : self.offsets[pack + 1]]

    def sums(self, values: NDArray[Any]) -> NDArray[Any]:
        """Add up a value of every document by pack; whole numbers add up exactly."""
        total = np.float64 if np.issubdtype(values.dtype, np.floating) else np.int64
        running = np.zeros(len(self.documents) + 1, total)
        np.cumsum(values[self.documents], out=running[1:])
        return np.diff(running[self.offsets])


def pack_documents(lengths: NDArray[np.integer], capacity: int) -> Packs:
    """Pack documents whole, the longest of a pack first; the same lengths give the same packs on every machine.

    Args:
        lengths: tokens of every document, all within [1, capacity].
        capacity: tokens of a pack.
    """
    if not len(lengths):
        return Packs(np.zeros(0, np.int64), np.zeros(1, np.int64))
    assert lengths.min() >= 1 and lengths.max() <= capacity, "cut or drop what is too long before packing"
    counts = np.bincount(lengths)
    placements = _Placements(capacity)
    for length in np.flatnonzero(counts)[::-1].tolist():
        placements.place(length, int(counts[length]))
    return _repack_worst(placements.packs(_longest_first(lengths, capacity)), lengths, capacity)


def _repack_worst(packs: Packs, lengths: NDArray[np.integer], capacity: int) -> Packs:
    """Pack the documents of the worst-filled and of the last packs again; the same packs where that saves none."""
    spaces = capacity - packs.sums(lengths)
    if spaces.sum() < capacity:
        return packs  # as few as there can be
    some = max(500, min(len(packs) // 20, 2**28 // capacity))  # each costs the more, the longer packs are
    apart = np.zeros(len(packs), np.bool_)
    apart[np.argsort(spaces, kind="stable")[-some:]] = True
    apart[-some:] = True
    sizes = np.diff(packs.offsets)
    loose = np.repeat(apart, sizes)
    documents = packs.documents[loose]
    fillings = _fill_exactly(lengths[documents], capacity)
    times = [number for _, number in fillings]
    if sum(times) >= apart.sum():
        return packs
    # The packs' lengths one after the other: the documents of a length take the places of that length.
    places = np.concatenate([np.tile(np.array(filling, np.uint32), number) for filling, number in fillings])
    moved = np.empty_like(documents)
    moved[stable_order(places, capacity)] = documents[stable_order(lengths[documents].astype(np.uint32), capacity)]
    sizes = np.concatenate([sizes[~apart], np.repeat([len(filling) for filling, _ in fillings], times)])
    return Packs(np.concatenate([packs.documents[~loose], moved]), np.concatenate([[0], np.cumsum(sizes)]))


def _fill_exactly(lengths: NDArray[np.integer], capacity: int) -> list[tuple[list[int], int]]:
    """Packs of all these lengths: what is in a pack, and how many packs are like it."""
    left = _Left(lengths, capacity)
    fillings = []
    while longest := left.longest(capacity):
        left.take(longest, 1)
        filling = [longest, *left.filling(capacity - longest)]
        left.take(longest, -1)
        number = min(left.counts[length] // filling.count(length) for length in set(filling))
        for length in filling:
            left.take(length, number)
        fillings.append((filling, number))
    return fillings


class _Left:
    """The lengths that wait for a pack: counts, and bits to find the longest, or two of a given sum, in a few steps.

    Bit n of `_bits` is set where documents of length n are left, bit `capacity - n` of `_mirrored` too. Moved down by
    `capacity - sum`, the mirrored bit of n is bit `sum - n`: what both have set are the lengths that have a partner.
    """

    def __init__(self, lengths: NDArray[np.integer], capacity: int) -> None:
        self.counts: list[int] = np.bincount(lengths, minlength=capacity + 1).tolist()
        self._capacity = capacity
        self._bits = self._mirrored = 0
        for length in np.unique(lengths).tolist():
            self._flip(length)

    def _flip(self, length: int) -> None:
        self._bits ^= 1 << length
        self._mirrored ^= 1 << (self._capacity - length)

    def take(self, length: int, number: int) -> None:
        """Take some documents of a length; less than none puts them back."""
        before = self.counts[length]
        self.counts[length] = before - number
        if (before == 0) != (before == number):
            self._flip(length)

    def longest(self, limit: int) -> int:
        """The longest up to a limit; 0: there is none."""
        return max(0, (self._bits & ((2 << limit) - 1)).bit_length() - 1)

    def filling(self, space: int) -> list[int]:
        """Lengths that leave little of a space, most often nothing: the best of a few tries, each begins shorter."""
        best: list[int] = []
        least, first = space, space
        for _ in range(8):
            if not least or not (first := self.longest(first)):
                break
            left, lengths = self._descend(space, first)
            if left < least:
                best, least = lengths, left
            first -= 1
        return best

    def _descend(self, space: int, limit: int) -> tuple[int, list[int]]:
        """Take the longest that fits, again and again, until two fill the rest; what is left, and the lengths."""
        lengths: list[int] = []
        while length := self.longest(min(space, limit)):
            number = min(self.counts[length], max(0, -(-space // length) - 2))  # until two can fill the rest
            lengths += [length] * number
            space -= number * length
            if number < self.counts[length]:
                if length < space and (pair := self._pair(space, length, self.counts[length] - number)):
                    return 0, lengths + pair
                lengths.append(length)
                space -= length
            limit = length - 1
        return space, lengths

    def _pair(self, total: int, longest: int, of_longest: int) -> list[int]:
        """Two lengths of a sum, the longest ones up to a limit, of which that many are left; none: []."""
        first = (self._bits & (self._mirrored >> (self._capacity - total)) & ((2 << longest) - 1)).bit_length() - 1
        second = total - first
        if first < second or (first == second and (of_longest if first == longest else self.counts[first]) < 2):
            return []
        return [first, second]


class _Spaces:
    """A set of numbers that finds the smallest one not below a limit in a few steps: bits, 1,024 to a word."""

    def __init__(self, largest: int) -> None:
        self._words = [0] * (largest // 1024 + 1)
        self._used = 0  # bit w is set when word w is not 0

    def add(self, number: int) -> None:
        word, bit = divmod(number, 1024)
        self._words[word] |= 1 << bit
        self._used |= 1 << word

    def remove(self, number: int) -> None:
        word, bit = divmod(number, 1024)
        self._words[word] ^= 1 << bit
        if not self._words[word]:
            self._used ^= 1 << word

    def smallest_from(self, limit: int) -> int | None:
        word, bit = divmod(limit, 1024)
        if here := self._words[word] >> bit:
            return limit + _lowest_bit(here)
        if not (later := self._used >> (word + 1)):
            return None
        word += 1 + _lowest_bit(later)
        return word * 1024 + _lowest_bit(self._words[word])


def _lowest_bit(bits: int) -> int:
    return (bits & -bits).bit_length() - 1


class _Placements:
    """Packs by the space left in them.

    Packs of equal space are kept as ranges of numbers. Documents come longest first, so where they went is a list of
    runs: the next `packs · each` documents went to the packs from number `first` on, `each` of them to every pack.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._opened = 0
        self._by_space: dict[int, list[tuple[int, int]]] = {}
        self._spaces = _Spaces(capacity)
        self._first, self._packs, self._each = array("q"), array("q"), array("q")

    def place(self, length: int, count: int) -> None:
        """Place `count` documents of one length."""
        while count:
            space = self._spaces.smallest_from(length)
            if space is not None:
                count -= self._fill(*self._take(space), space, length, count)
            else:
                packs = -(-count // (self.capacity // length))
                self._opened += packs
                count -= self._fill(self._opened - packs, packs, self.capacity, length, count)

    def _fill(self, first: int, packs: int, space: int, length: int, count: int) -> int:
        """Give packs of equal space as many documents as they hold, pack by pack; returns how many."""
        holds = space // length
        full = min(packs, count // holds)
        rest = min(count - full * holds, holds) if full < packs else 0
        self._put(first, full, space, length, holds)
        if full < packs:
            self._put(first + full, 1, space, length, rest)
            self._put(first + full + 1, packs - full - 1, space, length, 0)
        return full * holds + rest

    def _take(self, space: int) -> tuple[int, int]:
        ranges = self._by_space[space]
        taken = ranges.pop()
        if not ranges:
            self._spaces.remove(space)
        return taken

    def _put(self, first: int, packs: int, space: int, length: int, each: int) -> None:
        """Record a run and return its packs with what space is left; full packs are never seen again."""
        if not packs:
            return
        if each:
            self._first.append(first)
            self._packs.append(packs)
            self._each.append(each)
        if left := space - each * length:
            if not (ranges := self._by_space.setdefault(left, [])):
                self._spaces.add(left)
            ranges.append((first, packs))

    def packs(self, documents: NDArray[np.int64]) -> Packs:
        """Spread the documents, longest first, over the packs as recorded."""
        first, packs, each = (np.frombuffer(column, np.int64) for column in (self._first, self._packs, self._each))
        pack = (np.repeat(first - (np.cumsum(packs) - packs), packs) + np.arange(packs.sum())).astype(np.uint32)
        size = np.repeat(each, packs).astype(np.int32)
        by_pack = stable_order(pack, self._opened)
        size_by_pack = size[by_pack]
        # Where the documents of a run lie, longest first, less where they will lie, pack by pack.
        moved = (np.cumsum(size, dtype=np.int64) - size)[by_pack] - (np.cumsum(size_by_pack) - size_by_pack)
        source = np.repeat(moved, size_by_pack)
        source += np.arange(len(source))
        ends = np.cumsum(np.bincount(pack, weights=size, minlength=self._opened)).astype(np.int64)
        return Packs(documents[source], np.concatenate([[0], ends]))


def _longest_first(lengths: NDArray[np.integer], capacity: int) -> NDArray[np.int64]:
    return stable_order((capacity - lengths).astype(np.uint32), capacity)


def stable_order(keys: NDArray[np.uint32], bound: int) -> NDArray[np.int64]:
    """Stable argsort of keys up to `bound`: numpy sorts 16 bits by radix, so more are sorted 16 at a time."""
    order = np.argsort(keys.astype(np.uint16), kind="stable")
    if bound >= 2**16:
        order = order[np.argsort((keys >> 16).astype(np.uint16)[order], kind="stable")]
    return order
