"""Masks of many documents at once, as alternating run lengths of tokens, untrained first.

ids    [a b c d e f g]
mask   [. . . x x x .]      borders [3 6]      runs [3 3 1]
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Masks:
    """The mask runs of a batch of documents, end to end."""

    runs: NDArray[np.int32]
    offsets: NDArray[np.int64]
    """[documents + 1], where each document's begin in `runs`."""


def token_borders(
    token_ends: NDArray[np.signedinteger[Any]],
    token_starts: NDArray[np.signedinteger[Any]],
    spans: NDArray[np.signedinteger[Any]],
) -> NDArray[np.int64]:
    """The first token that is trained, and the one after the last, for every span.

    A token may begin before its span (" Yes" of "ASSISTANT: Yes"): it is the only one that says the answer's first
    word, so it is trained, as transformers does.

    Args:
        token_ends: of all tokens of a batch, in bytes or characters, ascending.
        token_starts: likewise.
        spans: [spans, 2] in the same unit, ascending and apart.

    Returns:
        [2 × spans] token numbers, ascending.
    """
    first = np.searchsorted(token_ends, spans[:, 0], side="right")
    after_last = np.searchsorted(token_starts, spans[:, 1], side="left")
    return np.maximum.accumulate(np.stack([first, after_last], axis=1).reshape(-1))


def mask_runs(borders: NDArray[np.int64], border_counts: NDArray[np.int64], offsets: NDArray[np.int64]) -> Masks:
    """Borders of all documents → their run lengths.

    Args:
        borders: token numbers in the batch, document after document.
        border_counts: [documents] how many each document has, an even number.
        offsets: [documents + 1] where the tokens of each document begin.
    """
    points = np.empty(len(borders) + 2 * len(border_counts), np.int64)
    ends = np.cumsum(border_counts + 2)
    inner = np.ones(len(points), np.bool_)
    inner[ends - 1] = inner[ends - border_counts - 2] = False
    points[ends - border_counts - 2], points[ends - 1], points[inner] = offsets[:-1], offsets[1:], borders
    kept = np.ones(max(len(points) - 1, 0), np.bool_)
    kept[ends[:-1] - 1] = False  # from the end of one document to the start of the next
    lengths = np.diff(points)
    last = ends - 2
    kept[last[(lengths[last] == 0) & (border_counts > 0)]] = False  # nothing after the last trained run
    assert (lengths[kept[: len(lengths)]] >= 0).all(), "borders of tokens are out of order"
    totals = np.concatenate([[0], np.cumsum(kept)])
    run_offsets = np.concatenate([[0], totals[ends - 1]])
    return Masks(lengths[kept].astype(np.int32), run_offsets)


def label_counts(
    masks: Masks, run_weights: NDArray[np.float32] | None = None
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """How many labels each document gives, and the sum of their weights.

    A trained token is a label, except a document's first, which nothing predicts.

    Args:
        masks: of the documents.
        run_weights: one for every run, of which those of untrained runs do not matter; None: all 1.
    """
    runs, documents = masks.runs.astype(np.int64), len(masks.offsets) - 1
    numbers = np.arange(len(runs)) - np.repeat(masks.offsets[:-1], np.diff(masks.offsets))  # within the document
    before = np.cumsum(runs) - runs
    starts_document = before == np.repeat(before[masks.offsets[:-1]], np.diff(masks.offsets))
    labels = np.where(numbers % 2 == 1, runs - (starts_document & (runs > 0)), 0)
    weights = labels if run_weights is None else labels * run_weights
    document = np.repeat(np.arange(documents), np.diff(masks.offsets))
    return (
        np.bincount(document, labels, minlength=documents).astype(np.int32),
        np.bincount(document, weights, minlength=documents).astype(np.float32),
    )
