"""Lengths → packs: best-fit decreasing on the histogram of lengths, over the whole data set at once.

Sorting documents by length and giving each the fullest pack that still holds it is best-fit decreasing. Documents of
one length are interchangeable, and so are packs with the same space left, so both are moved in groups: the work grows
with the number of distinct lengths, not of documents (the idea of SPFHP, Krell and Kosec, arXiv 2107.02027; best fit
keeps documents whole, "Fewer Truncations Improve Language Modeling", arXiv 2404.10830).

    capacity 8, lengths [5 4 3 3 1]  →  [5 3] [4 3 1]
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Packs:
    """Documents grouped into packs: pack `p` holds `documents[offsets[p]:offsets[p + 1]]`, ascending."""

    documents: NDArray[np.int64]
    offsets: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, pack: int) -> NDArray[np.int64]:
        documents: NDArray[np.int64] = self.documents[self.offsets[pack] : self.offsets[pack + 1]]
        return documents

    def sums(self, values: NDArray[np.int64]) -> NDArray[np.int64]:
        """Add up a value of every document by pack."""
        totals = np.concatenate([[0], np.cumsum(values[self.documents], dtype=np.int64)])
        return np.diff(totals[self.offsets])


def pack_documents(lengths: NDArray[np.integer], capacity: int) -> Packs:
    """Pack documents whole; the same lengths give the same packs on every machine.

    Args:
        lengths: tokens of every document, all within [1, capacity].
        capacity: tokens of a pack.
    """
    assert len(lengths) == 0 or (lengths.min() >= 1 and lengths.max() <= capacity), "filter lengths before packing"
    by_length = np.argsort(-lengths.astype(np.int64), kind="stable")
    distinct, starts = np.unique(-lengths[by_length].astype(np.int64), return_index=True)
    pack_of = np.empty(len(lengths), np.int64)
    open_packs = _OpenPacks(capacity)
    groups = np.split(by_length, starts[1:]) if len(lengths) else []
    for length, group in zip((-distinct).tolist(), groups, strict=True):
        _place(group, length, open_packs, pack_of)
    documents = np.argsort(pack_of, kind="stable")
    sizes = np.bincount(pack_of, minlength=open_packs.count)
    return Packs(documents, np.concatenate([[0], np.cumsum(sizes)]))


class _OpenPacks:
    """Packs by the space left in them; a bit set of the spaces finds the tightest one that fits in one step."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.count = 0
        self._by_space: dict[int, list[NDArray[np.int64]]] = {}
        self._spaces = 0  # bit s is set when some pack has s tokens of space

    def take_tightest(self, length: int, limit: int) -> tuple[int, NDArray[np.int64]] | None:
        """Remove up to `limit` packs with the least space of at least `length`: their space, and the packs."""
        fitting = self._spaces >> length
        if not fitting:
            return None
        space = length + (fitting & -fitting).bit_length() - 1
        packs = self._by_space[space].pop()
        if len(packs) > limit:
            self._by_space[space].append(packs[limit:])
        elif not self._by_space[space]:
            self._spaces &= ~(1 << space)
        return space, packs[:limit]

    def put(self, space: int, packs: NDArray[np.int64]) -> None:
        """Return packs with `space` tokens left; full packs are never seen again."""
        if space and len(packs):
            self._by_space.setdefault(space, []).append(packs)
            self._spaces |= 1 << space

    def open(self, number: int) -> NDArray[np.int64]:
        """Start `number` empty packs."""
        self.count += number
        return np.arange(self.count - number, self.count)


def _place(group: NDArray[np.int64], length: int, open_packs: _OpenPacks, pack_of: NDArray[np.int64]) -> None:
    """Place documents of one length, as many at a time as there are equal packs."""
    placed = 0
    while placed < len(group):
        found = open_packs.take_tightest(length, limit=len(group) - placed)
        if found is None:
            break
        space, packs = found
        pack_of[group[placed : placed + len(packs)]] = packs
        placed += len(packs)
        open_packs.put(space - length, packs)
    rest = group[placed:]
    if not len(rest):
        return
    per_pack = open_packs.capacity // length
    full, remainder = divmod(len(rest), per_pack)
    new = open_packs.open(full + bool(remainder))
    pack_of[rest] = np.repeat(new, per_pack)[: len(rest)]
    open_packs.put(open_packs.capacity - per_pack * length, new[:full])
    open_packs.put(open_packs.capacity - remainder * length, new[full:])
