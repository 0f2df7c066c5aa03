"""Pack plan → what the model sees. Documents lie end to end; positions restart and no label crosses a border.

documents   A(3) B(2)
input_ids   [A A A B B]
positions   [0 1 2 0 1]
labels      [a a - b -]      the next token where it is trained, "-" = IGNORE
weights     [1 1 0 2 0]      what the loss of each label counts, where the data says so
borders     [0 3 5]
"""

from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from data_tools.plan import PackTable
from data_tools.store import StoredDocument, TokenStore

IGNORE = -100
_FILLER = StoredDocument(np.zeros(1, np.int32), np.ones(1, np.int32), None)
_UNTRAINED_TRAINED = np.array([False, True])
_ALTERNATING = np.resize(_UNTRAINED_TRAINED, 1024)


@dataclass(frozen=True)
class Batch:
    """One micro-batch of packed documents. B = 1, T tokens, D documents."""

    input_ids: torch.Tensor
    """[1, T] int64"""
    labels: torch.Tensor
    """[1, T] int64, already shifted"""
    weights: torch.Tensor | None
    """[1, T] float32, what the loss of each label counts; None: 1"""
    positions: torch.Tensor
    """[1, T] int64"""
    borders: torch.Tensor
    """[D + 1] int32, where documents start and end"""
    longest: int
    """Tokens of the longest document."""
    tokens: int
    """Tokens of all documents (an empty batch still has a filler token)."""

    @property
    def model_inputs(self) -> tuple[Any, ...]:
        """The arguments of `PackedCausalLM.forward`."""
        return self.input_ids, self.labels, self.weights, self.positions, self.borders, self.longest

    def to(self, device: torch.device) -> "Batch":
        """The same batch in the memory of a device."""
        return replace(
            self,
            input_ids=self.input_ids.to(device),
            labels=self.labels.to(device),
            weights=None if self.weights is None else self.weights.to(device),
            positions=self.positions.to(device),
            borders=self.borders.to(device),
        )


def make_batch(store: TokenStore, table: PackTable, packs: NDArray[np.int64]) -> Batch:
    """Lay the documents of some packs end to end; no packs give one filler token without a label."""
    documents = [document for pack in packs.tolist() for document in read_pack(store, table, pack)]
    ids, labels, weights, borders = lay_out(documents or [_FILLER])
    lengths = np.diff(borders)
    positions = np.arange(len(ids))
    positions -= np.repeat(borders[:-1], lengths)
    return Batch(
        input_ids=torch.from_numpy(ids[None]),
        labels=torch.from_numpy(labels[None]),
        weights=None if weights is None else torch.from_numpy(weights[None]),
        positions=torch.from_numpy(positions[None]),
        borders=torch.from_numpy(borders.astype(np.int32)),
        longest=int(lengths.max()),
        tokens=len(ids) if documents else 0,
    )


def read_pack(store: TokenStore, table: PackTable, pack: int) -> list[StoredDocument]:
    """The documents of a pack, or the pieces of them that the plan cut out."""
    place = slice(*table.packs.offsets[pack : pack + 2].tolist())
    documents = [store.document(number) for number in table.packs.documents[place].tolist()]
    if table.cuts is None:
        return documents
    starts, lengths = (column[place].tolist() for column in table.cuts)
    return [_cut(*part) for part in zip(documents, starts, lengths, strict=True)]


def _cut(document: StoredDocument, start: int, length: int) -> StoredDocument:
    ends = np.cumsum(document.mask_runs)
    runs = np.diff(np.clip(ends, start, start + length), prepend=start).astype(np.int32)  # outside they are empty
    return StoredDocument(document.input_ids[start : start + length], runs, document.weights)


def lay_out(
    documents: list[StoredDocument],
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32] | None, NDArray[np.int64]]:
    """Documents end to end: ids [T], labels [T], what each label counts [T] where documents say so, borders [D + 1]."""
    borders = np.array([0, *accumulate([len(document.input_ids) for document in documents])])
    ids = np.concatenate([document.input_ids for document in documents], dtype=np.int64, casting="safe")
    runs = [document.mask_runs for document in documents]
    lengths = np.concatenate(runs)
    trained_runs = np.concatenate([_alternating(len(of_document)) for of_document in runs])
    trained = np.repeat(trained_runs, lengths)
    trained[borders[:-1]] = False  # nothing predicts the first token of a document
    weights = None
    if any(document.weights is not None for document in documents):
        of_run = np.zeros(len(lengths), np.float32)
        of_run[trained_runs] = np.concatenate([_weights(document) for document in documents])
        weights = np.append(np.where(trained, np.repeat(of_run, lengths), np.float32(0))[1:], np.float32(0))
        trained[1:] = weights[:-1] != 0
    labels = np.full_like(ids, IGNORE)
    np.copyto(labels[:-1], ids[1:], where=trained[1:])
    return ids, labels, weights, borders


def _alternating(runs: int) -> NDArray[np.bool_]:
    """Whether each run of a document is trained: the first is not, the second is, …"""
    return np.resize(_UNTRAINED_TRAINED, runs) if runs > len(_ALTERNATING) else _ALTERNATING[:runs]


def _weights(document: StoredDocument) -> NDArray[np.float32]:
    return np.ones(len(document.mask_runs) // 2, np.float32) if document.weights is None else document.weights
