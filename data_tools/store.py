"""THE CONTRACT between the halves: the token store on disk. Imports pyarrow only.

    <store>/manifest.json       written last: its existence means that the store is complete
            shards/NNNNN.arrow  one row per document (below), memory-mapped
            index.arrow         length, trained, source, digest of every document: planning never touches tokens
            rejects.jsonl       every row that did not become a document, with file, row and reason
            tokenizer/          the tokenizer with its template, for training nodes and exports

A document's row: `input_ids` (uint16 where the vocabulary allows, else int32), `mask_runs` (alternating untrained and
trained run lengths, untrained first), `source` (position in the manifest's sources), `row` (in that source, from 0).
"""

import hashlib
import json
import os
from bisect import bisect_right
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data_tools.errors import UserError

FORMAT_VERSION = 1
MANIFEST = "manifest.json"

INDEX_SCHEMA = pa.schema(
    [("length", pa.int32()), ("trained", pa.int32()), ("source", pa.int16()), ("digest", pa.uint64())]
)


def shard_schema(vocab_size: int) -> pa.Schema:
    """The columns of a shard; two bytes a token when every id fits."""
    token = pa.uint16() if vocab_size <= 2**16 else pa.int32()
    return pa.schema(
        [
            ("input_ids", pa.list_(token)),
            ("mask_runs", pa.list_(pa.int32())),
            ("source", pa.int16()),
            ("row", pa.int64()),
        ]
    )


def shard_name(number: int) -> str:
    """The file of work unit `number`, below the store's folder."""
    return f"shards/{number:05d}.arrow"


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Write under a temporary name, fsync, rename: readers see the whole file or none, whatever happens."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    fsync_folder(path.parent)


def fsync_folder(folder: Path) -> None:
    """Make the names in a folder survive a crash of the machine."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically, keys sorted: the same value always gives the same bytes."""
    text = json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    write_text(path, text)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""

    def write(temporary: Path) -> None:
        temporary.write_text(text, encoding="utf-8")

    write_atomically(path, write)


def write_arrow(path: Path, batch: pa.RecordBatch) -> None:
    """Write one record batch as an Arrow IPC file, atomically."""

    def write(temporary: Path) -> None:
        with pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
            writer.write_batch(batch)

    write_atomically(path, write)


def read_arrow(path: Path) -> pa.RecordBatch:
    """Memory-map a file that `write_arrow` made; no byte is read before it is used."""
    return pa.ipc.open_file(pa.memory_map(str(path))).get_batch(0)


def file_digest(path: Path) -> str:
    """sha256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class TokenStore:
    """A finished token store, memory-mapped.

    Raises:
        UserError: there is no finished store in the folder, or it was made by another version.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest = _read_manifest(folder)
        self._first_documents = _running_totals(shard["documents"] for shard in self.manifest["shards"])
        self._shards: dict[int, tuple[pa.ListArray, pa.ListArray]] = {}

    def __len__(self) -> int:
        return int(self._first_documents[-1])

    @property
    def fingerprint(self) -> str:
        """Names everything that decided the tokens."""
        return str(self.manifest["fingerprint"])

    @property
    def vocab_size(self) -> int:
        """Rows that a model's embedding must have at least."""
        return int(self.manifest["vocab_size"])

    @cached_property
    def index(self) -> dict[str, NDArray[Any]]:
        """`length`, `trained`, `source`, `digest` of every document, in store order, without copying."""
        batch = read_arrow(self.folder / "index.arrow")
        return {name: batch.column(name).to_numpy() for name in batch.schema.names}

    def document(self, number: int) -> tuple[NDArray[Any], NDArray[np.int32]]:
        """The `input_ids` and `mask_runs` of document `number`, as views of the mapped file."""
        if not 0 <= number < len(self):
            raise IndexError(f"document {number} of {len(self)}")
        shard = bisect_right(self._first_documents, number) - 1
        input_ids, mask_runs = self._columns(shard)
        row = number - int(self._first_documents[shard])
        return _list_item(input_ids, row), _list_item(mask_runs, row)

    def _columns(self, shard: int) -> tuple[pa.ListArray, pa.ListArray]:
        if shard not in self._shards:
            batch = read_arrow(self.folder / self.manifest["shards"][shard]["file"])
            self._shards[shard] = (batch.column("input_ids"), batch.column("mask_runs"))
        return self._shards[shard]

    def verify(self) -> None:
        """Compare every shard with the checksum in the manifest.

        Raises:
            UserError: a shard is missing or was changed.
        """
        for shard in self.manifest["shards"]:
            path = self.folder / shard["file"]
            if not path.exists() or file_digest(path) != shard["sha256"]:
                raise UserError(f"{path} is not what was written; delete {self.folder} and run `shardtune prepare`")


def _list_item(column: pa.ListArray, row: int) -> NDArray[Any]:
    start, end = column.offsets[row].as_py(), column.offsets[row + 1].as_py()
    item: NDArray[Any] = column.values[start:end].to_numpy()
    return item


def _running_totals(counts: Sequence[int] | Any) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(list(counts), dtype=np.int64)])


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    if not path.exists():
        state = "is not finished" if (folder / "shards").exists() else "does not exist"
        raise UserError(f"the token store {folder} {state}; run `shardtune prepare` with the same configuration")
    manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if manifest["format_version"] != FORMAT_VERSION:
        raise UserError(
            f"{path} has format {manifest['format_version']}, this shardtune reads {FORMAT_VERSION}; prepare it again"
        )
    return manifest
