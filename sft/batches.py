"""Pack plan → what the model sees. Documents lie end to end; positions restart and no label crosses a border.

documents   A(3) B(2)
input_ids   [A A A B B]
positions   [0 1 2 0 1]
labels      [a a - b -]      the next token where it is trained, "-" = IGNORE
borders     [0 3 5]
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from data_tools.plan import PackTable
from data_tools.store import TokenStore

IGNORE = -100


@dataclass(frozen=True)
class Batch:
    """One micro-batch of packed documents. B = 1, T tokens, D documents."""

    input_ids: torch.Tensor
    """[1, T] int64"""
    labels: torch.Tensor
    """[1, T] int64, already shifted"""
    positions: torch.Tensor
    """[1, T] int64"""
    borders: torch.Tensor
    """[D + 1] int32, where documents start and end"""
    longest: int
    """Tokens of the longest document."""
    tokens: int
    """Tokens of all documents (an empty batch still has a filler token)."""

    def to(self, device: torch.device) -> "Batch":
        """The same batch in the memory of a device."""
        return replace(
            self,
            input_ids=self.input_ids.to(device),
            labels=self.labels.to(device),
            positions=self.positions.to(device),
            borders=self.borders.to(device),
        )


def make_batch(store: TokenStore, table: PackTable, packs: NDArray[np.int64]) -> Batch:
    """Lay the documents of some packs end to end; no packs give one filler token without a label."""
    numbers = [int(number) for pack in packs for number in table.packs[int(pack)]]
    if not numbers:
        return _batch([np.zeros(1, np.int64)], [np.array([1], np.int32)], tokens=0)
    documents = [store.document(number) for number in numbers]
    input_ids = [document.input_ids for document in documents]
    mask_runs = [document.mask_runs for document in documents]
    return _batch(input_ids, mask_runs, tokens=sum(len(ids) for ids in input_ids))


def _batch(input_ids: Any, mask_runs: Any, tokens: int) -> Batch:
    lengths = np.array([len(ids) for ids in input_ids])
    ids = np.concatenate(input_ids).astype(np.int64)
    borders = np.concatenate([[0], np.cumsum(lengths)])
    trained = np.concatenate([_mask(runs) for runs in mask_runs])
    labels = np.full_like(ids, IGNORE)
    labels[:-1] = np.where(trained[1:], ids[1:], IGNORE)
    labels[borders[1:] - 1] = IGNORE  # the last token of a document predicts nothing
    positions = np.arange(len(ids)) - np.repeat(borders[:-1], lengths)
    return Batch(
        torch.from_numpy(ids)[None],
        torch.from_numpy(labels)[None],
        torch.from_numpy(positions)[None],
        torch.from_numpy(borders.astype(np.int32)),
        int(lengths.max()),
        tokens,
    )


def _mask(runs: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Run lengths, untrained first → one bool a token."""
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs)
