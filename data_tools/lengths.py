"""Lengths of documents → a report, and pieces of at most `max_length` tokens: what packs are made of.

    too_long   a document of 10 tokens, max_length 4
    drop       nothing
    truncate   [0 4]
    split      [0 4] [4 8] [8 10]

The first token of a piece is predicted by nothing, so it is no label; a piece without labels teaches nothing and is
left out. Only documents that are cut are read from the store; everything else comes from its index.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_tools.errors import UserError
from data_tools.packing import Packs
from data_tools.store import StoredDocument, TokenStore

LIMITS = tuple(1024 * 2**power for power in range(1, 8))
"""2k, 4k, … 128k: the lengths that people choose from."""
_SHARES = (50, 90, 95, 99, 100)

Index = dict[str, NDArray[Any]]
"""The columns of the store's index."""


@dataclass(frozen=True)
class Pieces:
    """Parts of documents, one row each: all columns have the same length."""

    documents: NDArray[np.uint32]
    starts: NDArray[np.int32]
    """The first token of the piece in its document."""
    lengths: NDArray[np.int32]
    trained: NDArray[np.int32]
    """Labels."""
    weights: NDArray[np.float32]
    """Sum of the labels' weights."""

    def __len__(self) -> int:
        return len(self.documents)

    def take(self, numbers: NDArray[Any]) -> "Pieces":
        """Some of the pieces, in the order of `numbers` (or those that a mask marks)."""
        return Pieces(*(column[numbers] for column in vars(self).values()))

    @classmethod
    def whole(cls, index: Index, documents: NDArray[np.integer]) -> "Pieces":
        """Every document as one piece."""
        columns = (index[name][documents] for name in ("length", "trained", "weight"))
        return cls(documents.astype(np.uint32), np.zeros(len(documents), np.int32), *columns)

    @classmethod
    def joined(cls, *parts: "Pieces") -> "Pieces":
        """The pieces of several tables."""
        return cls(*(np.concatenate(columns) for columns in zip(*(vars(part).values() for part in parts), strict=True)))


def cut_documents(store: TokenStore, max_length: int, too_long: str) -> tuple[Pieces, int]:
    """The pieces of all documents that packs may hold, and how many parts of cut documents have no label to learn.

    Raises:
        UserError: `too_long` is `error` and a document is, or nothing fits.
    """
    lengths = store.index["length"]
    fits = lengths <= max_length
    if too_long == "error" and not fits.all():
        raise UserError(
            f"{int((~fits).sum())} documents have more than data.max_length={max_length} tokens (the longest "
            f"{lengths.max()}); raise it, or set data.too_long to drop, truncate or split"
        )
    if too_long == "drop" and not fits.any():
        raise UserError(
            f"data.max_length={max_length} is shorter than every document (the shortest has {lengths.min()} "
            f"tokens, half of them more than {int(np.median(lengths))}); raise it"
        )
    whole = Pieces.whole(store.index, np.flatnonzero(fits & (store.index["trained"] > 0)))
    if too_long == "drop" or fits.all():
        return whole, 0
    documents = np.flatnonzero(~fits)
    each = -(-lengths[documents].astype(np.int64) // max_length) if too_long == "split" else np.ones_like(documents)
    owners = np.repeat(documents, each)
    starts = (np.arange(len(owners)) - np.repeat(np.cumsum(each) - each, each)) * max_length
    cut = parts_of(store, owners, starts, np.minimum(starts + max_length, lengths[owners]))
    learnt = cut.trained > 0
    return Pieces.joined(whole, cut.take(learnt)), int((~learnt).sum())


def parts_of(
    store: TokenStore, documents: NDArray[np.integer], starts: NDArray[np.integer], ends: NDArray[np.integer]
) -> Pieces:
    """Parts of documents (those of one document are neighbours), with their labels, which the store knows."""
    trained, weights = np.zeros(len(documents), np.int32), np.zeros(len(documents), np.float32)
    borders = np.flatnonzero(np.diff(documents, prepend=-1, append=-1))
    for first, last in zip(borders[:-1].tolist(), borders[1:].tolist(), strict=True):
        rows = slice(first, last)
        trained[rows], weights[rows] = _labels(store.document(int(documents[first])), starts[rows] + 1, ends[rows])
    return Pieces(
        documents.astype(np.uint32), starts.astype(np.int32), (ends - starts).astype(np.int32), trained, weights
    )


def _labels(
    document: StoredDocument, starts: NDArray[np.integer], ends: NDArray[np.integer]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Trained tokens from `starts` to `ends`, and the sum of their weights."""
    of_run = np.zeros(len(document.mask_runs))
    of_run[1::2] = 1 if document.weights is None else document.weights
    run_ends = np.cumsum(document.mask_runs)

    def between(value: NDArray[np.float64]) -> NDArray[np.float64]:
        before_run = np.cumsum(document.mask_runs * value) - document.mask_runs * value

        def before(place: NDArray[np.integer]) -> NDArray[np.float64]:
            run = np.minimum(np.searchsorted(run_ends, place, side="right"), len(run_ends) - 1)
            result: NDArray[np.float64] = (
                before_run[run] + (place - run_ends[run] + document.mask_runs[run]) * value[run]
            )
            return result

        return before(ends) - before(starts)

    return between((of_run > 0).astype(np.float64)), between(of_run)


def wrap(store: TokenStore, pieces: Pieces, max_length: int) -> tuple[Pieces, Packs]:
    """Pieces end to end as one stream, cut every `max_length` tokens; rows without any label are left out."""
    ends = np.cumsum(pieces.lengths, dtype=np.int64)
    firsts = ends - pieces.lengths
    total = int(ends[-1]) if len(ends) else 0
    borders = np.union1d(firsts, np.arange(0, total, max_length))
    owners = np.searchsorted(ends, borders, side="right")
    lengths = np.diff(borders, append=total)
    parts = pieces.take(owners)
    cut = np.flatnonzero(lengths < pieces.lengths[owners])
    starts = parts.starts[cut] + borders[cut] - firsts[owners[cut]]
    labelled = parts_of(store, parts.documents[cut], starts, starts + lengths[cut])
    for name, column in vars(parts).items():
        column[cut] = getattr(labelled, name)
    rows = borders // max_length
    parts = parts.take(kept := np.bincount(rows, parts.trained)[rows] > 0)
    sizes = np.unique(rows[kept], return_counts=True)[1]
    return parts, Packs(np.arange(len(parts)), np.concatenate([[0], np.cumsum(sizes)]))


def length_report(lengths: NDArray[np.int32], max_length: int) -> dict[str, Any]:
    """How long documents are, and what each limit would leave out.

    Returns:
        `documents`, `tokens`, `percentiles` (share of documents in percent → tokens), and `limits`: for every limit the
        number of documents over it (`longer`), the share of all tokens in documents within it (`tokens_fit`), and the
        share that is left when the longer ones are truncated (`tokens_kept`).
    """
    ordered = np.sort(lengths)
    running = np.concatenate([[0], np.cumsum(ordered, dtype=np.int64)])
    tokens = int(running[-1])
    limits = {}
    for limit in sorted({*LIMITS, max_length}):
        within = int(np.searchsorted(ordered, limit, side="right"))
        longer, fitting = len(ordered) - within, int(running[within])
        kept = fitting + longer * limit
        limits[str(limit)] = {"longer": longer, "tokens_fit": fitting / tokens, "tokens_kept": kept / tokens}
    at = {str(share): int(ordered[-(-len(ordered) * share // 100) - 1]) for share in _SHARES}
    return {"documents": len(ordered), "tokens": tokens, "percentiles": at, "limits": limits}
