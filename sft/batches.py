"""Pack plan → what the model sees. Documents lie end to end; positions restart and no label crosses a border.

documents   A(3) B(2)
input_ids   [A A A B B]
positions   [0 1 2 0 1]
borders     [0 3 5]
targets     the trained tokens, each at the place that predicts it: the one before. Where A's last two and B's last
            are trained,
    places  [0 1 3]
    labels  [a a b]
    weights [1 1 2]          what the loss of each label counts, where the data says so
    sources [0 0 4]          where each label's document is from
"""

from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from data_tools.plan import PackTable
from data_tools.store import StoredDocument, TokenStore
from sft.sequence import SequenceGroup

_FILLER = StoredDocument(np.zeros(1, np.int32), np.ones(1, np.int32), None)
_EMPTY = np.zeros(0, np.int64)
_UNTRAINED_TRAINED = np.array([False, True])
_ALTERNATING = np.resize(_UNTRAINED_TRAINED, 1024)


@dataclass(frozen=True)
class Targets:
    """What is learnt of a batch: K labels, in the order of their places."""

    places: torch.Tensor
    """[K] int64, the position in the row whose next token is learnt"""
    labels: torch.Tensor
    """[K] int64, that token"""
    weights: torch.Tensor | None
    """[K] float32, what its loss counts; None: 1"""
    sources: torch.Tensor
    """[K] int64, the source of its document, as a position in the manifest's `sources`"""
    source_count: int
    """Sources of the store."""


@dataclass(frozen=True)
class Batch:
    """One micro-batch of packed documents. B = 1, T tokens, D documents."""

    input_ids: torch.Tensor
    """[1, T] int64"""
    positions: torch.Tensor
    """[1, T] int64"""
    borders: torch.Tensor
    """[D + 1] int32, where documents start and end"""
    longest: int
    """Tokens of the longest document."""
    tokens: int
    """Tokens of all documents (an empty batch still has a filler token)."""
    documents: NDArray[np.int64]
    """[D] their numbers in the store, to name them by; stays on the host, and is empty where the batch is"""
    targets: Targets
    group: SequenceGroup | None = None
    """whose ranks each hold a part of the row; None: it is whole"""

    @property
    def model_inputs(self) -> tuple[Any, ...]:
        """The arguments of `PackedCausalLM.forward`, one by one: DeepSpeed's hooks look for tensors among them."""
        targets = self.targets
        row = (self.input_ids, self.positions, self.borders, self.longest)
        return (*row, targets.places, targets.labels, targets.weights, self.group)

    def to(self, device: torch.device) -> "Batch":
        """The same batch in the memory of a device; a GPU fetches it while it computes."""
        if device.type != "cuda":
            return self

        def move(tensor: torch.Tensor) -> torch.Tensor:
            return tensor.pin_memory().to(device, non_blocking=True)

        targets = replace(
            self.targets,
            places=move(self.targets.places),
            labels=move(self.targets.labels),
            weights=None if self.targets.weights is None else move(self.targets.weights),
            sources=move(self.targets.sources),
        )
        return replace(
            self,
            input_ids=move(self.input_ids),
            positions=move(self.positions),
            borders=move(self.borders),
            targets=targets,
        )


def make_batch(store: TokenStore, table: PackTable, packs: NDArray[np.int64]) -> Batch:
    """Lay the documents of some packs end to end; no packs give one filler token without a label."""
    documents = [document for pack in packs.tolist() for document in read_pack(store, table, pack)]
    numbers = np.concatenate([_EMPTY, *(table.packs[pack] for pack in packs.tolist())], dtype=np.int64)
    ids, places, weights, borders = lay_out(documents or [_FILLER])
    lengths = (borders[1:] - borders[:-1]).tolist()
    longest = max(lengths)
    counted = np.arange(longest)
    label_borders = places.searchsorted(borders)
    sources = store.index["source"][numbers].astype(np.int64) if documents else np.zeros(1, np.int64)
    targets = Targets(
        places=torch.from_numpy(places),
        labels=torch.from_numpy(ids.take(places + 1)),
        weights=None if weights is None else torch.from_numpy(weights),
        sources=torch.from_numpy(sources.repeat(label_borders[1:] - label_borders[:-1])),
        source_count=len(store.manifest["sources"]),
    )
    return Batch(
        input_ids=torch.from_numpy(ids[None]),
        positions=torch.from_numpy(np.concatenate([counted[:length] for length in lengths])[None]),
        borders=torch.from_numpy(borders.astype(np.int32)),
        longest=longest,
        tokens=len(ids) if documents else 0,
        documents=numbers,
        targets=targets,
    )


def split_batch(batch: Batch, group: SequenceGroup) -> Batch:
    """This rank's part of a batch: T / size tokens and their targets. Borders, documents and `longest` stay the row's.

    A row that cannot be divided gets a document of filler tokens at its end, of which nothing is learnt.
    """
    if group.size == 1:
        return batch
    length = batch.input_ids.shape[1]
    filler = -length % group.size
    ids = torch.nn.functional.pad(batch.input_ids, (0, filler))
    positions = torch.cat([batch.positions, torch.arange(filler)[None]], 1)
    borders = torch.cat([batch.borders, batch.borders[-1:] + filler]) if filler else batch.borders
    share = (length + filler) // group.size
    start, end = group.rank * share, (group.rank + 1) * share
    targets = batch.targets
    own = (targets.places >= start) & (targets.places < end)
    return replace(
        batch,
        input_ids=ids[:, start:end].contiguous(),
        positions=positions[:, start:end].contiguous(),
        borders=borders,
        longest=max(batch.longest, filler),
        tokens=max(0, min(end, batch.tokens) - start),
        targets=replace(
            targets,
            places=targets.places[own] - start,
            labels=targets.labels[own],
            weights=None if targets.weights is None else targets.weights[own],
            sources=targets.sources[own],
        ),
        group=group,
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
    """Documents end to end: ids [T], places [K] whose next token is trained, what each counts [K] where documents say
    so, borders [D + 1].
    """
    tokens, runs, of_runs = zip(*documents, strict=True)
    borders = np.array([0, *accumulate(map(len, tokens))])
    ids = np.concatenate(tokens, dtype=np.int64, casting="safe")
    lengths = np.concatenate(runs)
    trained_runs = np.concatenate([_alternating(len(of_document)) for of_document in runs])
    trained = trained_runs.repeat(lengths)
    trained[borders[:-1]] = False  # nothing predicts the first token of a document
    weights = None
    if any(of_document is not None for of_document in of_runs):
        of_run = np.zeros(len(lengths), np.float32)
        of_run[trained_runs] = np.concatenate([_weights(document) for document in documents])
        of_token = np.repeat(of_run, lengths)
        trained &= of_token != 0
        weights = of_token[trained]
    return ids, trained.nonzero()[0] - 1, weights, borders


def _alternating(runs: int) -> NDArray[np.bool_]:
    """Whether each run of a document is trained: the first is not, the second is, …"""
    return np.resize(_UNTRAINED_TRAINED, runs) if runs > len(_ALTERNATING) else _ALTERNATING[:runs]


def _weights(document: StoredDocument) -> NDArray[np.float32]:
    return np.ones(len(document.mask_runs) // 2, np.float32) if document.weights is None else document.weights
