"""Documents as the record batches of a shard and of its index."""

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data_tools.encode import Documents
from data_tools.readers import WorkUnit
from data_tools.store import INDEX_SCHEMA


def shard_batch(
    schema: pa.Schema, unit: WorkUnit, documents: Documents, positions: NDArray[np.int64]
) -> pa.RecordBatch:
    """The rows of a shard.

    Args:
        schema: of the shards.
        unit: whose documents they are.
        documents: the tokens.
        positions: [documents] the row of each in its unit.
    """
    token = schema.field("input_ids").type.value_type
    assert documents.offsets[-1] < 2**31, "list offsets have 32 bits"
    columns = [
        _list_array(
            documents.ids.astype(np.uint16 if token == pa.uint16() else np.int32, copy=False), documents.offsets
        ),
        _list_array(documents.masks.runs, documents.masks.offsets),
        _weights_array(documents.run_weights),
        _array(np.full(len(documents), unit.source, np.int16)),
        _array(positions + unit.source_row),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _list_array(values: np.ndarray[Any, Any], offsets: np.ndarray[Any, Any]) -> pa.ListArray:
    return pa.ListArray.from_arrays(_array(offsets.astype(np.int32)), _array(values))


def _array(values: np.ndarray[Any, Any]) -> pa.Array:
    """Numbers as an Arrow array, without copying (and without pandas, which `pa.array` would import first)."""
    kind = pa.from_numpy_dtype(values.dtype)
    return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(np.ascontiguousarray(values))])


def _weights_array(weights: list[list[float] | None]) -> pa.Array:
    kind = pa.list_(pa.float32())
    return pa.array(weights, kind) if any(weights) else pa.nulls(len(weights), kind)


def index_batch(unit: WorkUnit, documents: Documents, positions: NDArray[np.int64]) -> pa.RecordBatch:
    """The rows of an index, likewise."""
    digests = documents.digests()
    last_of_row = np.searchsorted(positions, positions, side="right") - 1
    columns = [
        _array(np.diff(documents.offsets).astype(np.int32)),
        _array(documents.trained),
        _array(documents.weight),
        _array(np.full(len(documents), unit.source, np.int16)),
        _array(digests),
        _array(digests[last_of_row]),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=INDEX_SCHEMA)
