"""Documents of one mapped shard, without copying."""

from bisect import bisect_right
from collections.abc import Iterable
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray


class StoredDocument(NamedTuple):
    """One document, as views of the mapped file."""

    input_ids: NDArray[Any]
    """[tokens] uint16 or int32"""
    mask_runs: NDArray[np.int32]
    """Alternating untrained and trained run lengths."""
    weights: NDArray[np.float32] | None
    """One per trained run; None: all are 1."""


class Shard:
    """A mapped shard of one or more record batches."""

    def __init__(self, path: Path) -> None:
        file = pa.ipc.open_file(pa.memory_map(str(path)))
        self._batches = [file.get_batch(number) for number in range(file.num_record_batches)]
        self._first_rows = running_totals([batch.num_rows for batch in self._batches])
        self._columns: dict[int, _Columns] = {}

    def document(self, row: int) -> StoredDocument:
        """Document `row` of this shard."""
        number = bisect_right(self._first_rows, row) - 1
        columns = self._columns.get(number)
        if columns is None:
            batch = self._batches[number]
            columns = self._columns[number] = _Columns(
                *_list_column(batch, "input_ids"), *_list_column(batch, "mask_runs"), *_list_column(batch, "weights")
            )
        row -= self._first_rows[number]
        ids, ids_at, runs, runs_at, weights, weights_at = columns
        of_document = None
        if len(weights) and (end := weights_at[row + 1]) > (start := weights_at[row]):
            of_document = weights[start:end]
        return StoredDocument(ids[ids_at[row] : ids_at[row + 1]], runs[runs_at[row] : runs_at[row + 1]], of_document)

    def place(self, row: int) -> tuple[int, int]:
        """The source of a document and its row there."""
        number = bisect_right(self._first_rows, row) - 1
        batch, row = self._batches[number], row - self._first_rows[number]
        return batch.column("source")[row].as_py(), batch.column("row")[row].as_py()


class _Columns(NamedTuple):
    """The lists of a record batch: a document is two or three slices. Offsets are read one by one, as plain numbers."""

    ids: NDArray[Any]
    ids_at: memoryview
    runs: NDArray[np.int32]
    runs_at: memoryview
    weights: NDArray[np.float32]
    weights_at: memoryview


def _list_column(batch: pa.RecordBatch, name: str) -> tuple[NDArray[Any], memoryview]:
    column: pa.ListArray = batch.column(name)
    return column.values.to_numpy(), memoryview(column.offsets.to_numpy())


def running_totals(counts: Iterable[int]) -> list[int]:
    """Where each part starts, and the end of the last."""
    return [0, *accumulate(counts)]
