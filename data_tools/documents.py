"""One unit of work → one shard: a plain class that Ray actors and the in-process path share."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import date
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from data_tools.chat import ChatTemplate, RenderedChat
from data_tools.encode import Document, Encoder
from data_tools.errors import RowError
from data_tools.formats import to_conversation
from data_tools.readers import Row, WorkUnit, read_rows
from data_tools.store import INDEX_SCHEMA, file_digest, shard_name, shard_schema, write_arrow, write_json
from data_tools.tokenizer import load_tokenizer, vocabulary_size

_ROWS_AT_ONCE = 512


@dataclass(frozen=True)
class Reject:
    """A row that did not become a document."""

    file: str
    row: int
    kind: Literal["rejected", "dropped"]
    """`rejected` rows are not what they should be; `dropped` rows are fine, but leave nothing to train on."""
    reason: str


@dataclass(frozen=True)
class UnitRecord:
    """What became of a unit. Written after its shard: its existence means that the shard is complete."""

    fingerprint: str
    unit: int
    source: int
    rows: int
    documents: int
    tokens: int
    trained_tokens: int
    blake3: str
    rejects: list[Reject]


class DocumentMaker:
    """Makes shards. Holds the tokenizer and nothing that changes: any unit, in any order, gives the same bytes.

    Args:
        store: the folder of the store; its tokenizer is already there.
        fingerprint: of the whole preparation, written into records.
        template_date: what `strftime_now` answers.
    """

    def __init__(self, store: Path, fingerprint: str, template_date: date) -> None:
        self.store = store
        self.fingerprint = fingerprint
        tokenizer = load_tokenizer(str(store / "tokenizer"))
        self.template = ChatTemplate(tokenizer.chat_template, tokenizer.special_tokens_map, template_date)
        self.encoder = Encoder(tokenizer)
        self.schema = shard_schema(vocabulary_size(tokenizer))

    def make_shard(self, unit: WorkUnit) -> UnitRecord:
        """Read, render, encode and write one unit; finished units are left as they are."""
        if finished := read_record(self.store, unit.number, self.fingerprint):
            return finished
        documents: list[Document] = []
        rows: list[int] = []
        rejects: list[Reject] = []
        numbered = enumerate(read_rows(unit), start=unit.first_row)
        while chunk := list(islice(numbered, _ROWS_AT_ONCE)):
            for row, made in self._make_documents(chunk):
                if isinstance(made, Document):
                    rows.append(row - unit.first_row + unit.source_row)
                    documents.append(made)
                else:
                    kind, reason = made
                    rejects.append(Reject(str(unit.file), row, kind, reason))
        return self._write(unit, documents, rows, rejects)

    def _make_documents(
        self, rows: list[tuple[int, Row]]
    ) -> Iterator[tuple[int, Document | tuple[Literal["rejected", "dropped"], str]]]:
        """Render row by row, encode together; in the order of the rows."""
        rendered = [self._render(row) for _, row in rows]
        documents = iter(self.encoder.encode([chat for chat in rendered if isinstance(chat, RenderedChat)]))
        for (number, _), chat in zip(rows, rendered, strict=True):
            if isinstance(chat, RowError):
                yield number, ("rejected", str(chat))
                continue
            document = next(documents)
            if document.trained:
                yield number, document
            else:
                yield number, ("dropped", "nothing to train on")

    def _render(self, row: Row) -> RenderedChat | RowError:
        if isinstance(row, RowError):
            return row
        try:
            return self.template.render(to_conversation(row))
        except RowError as error:
            return error

    def _write(self, unit: WorkUnit, documents: list[Document], rows: list[int], rejects: list[Reject]) -> UnitRecord:
        shard = self.store / shard_name(unit.number)
        write_arrow(shard, self.schema, [self._shard_batch(unit, documents, rows)])
        write_arrow(_index_path(self.store, unit.number), INDEX_SCHEMA, [_index_batch(unit, documents)])
        record = UnitRecord(
            fingerprint=self.fingerprint,
            unit=unit.number,
            source=unit.source,
            rows=unit.rows,
            documents=len(documents),
            tokens=sum(len(document.input_ids) for document in documents),
            trained_tokens=sum(document.trained for document in documents),
            blake3=file_digest(shard),
            rejects=rejects,
        )
        write_json(_record_path(self.store, unit.number), asdict(record))
        return record

    def _shard_batch(self, unit: WorkUnit, documents: list[Document], rows: list[int]) -> pa.RecordBatch:
        columns = [
            _list_array([document.input_ids for document in documents], self.schema.field("input_ids").type),
            _list_array([document.mask_runs for document in documents], self.schema.field("mask_runs").type),
            pa.array([None] * len(documents), pa.list_(pa.float32())),
            pa.array([unit.source] * len(documents), pa.int16()),
            pa.array(rows, pa.int64()),
        ]
        return pa.RecordBatch.from_arrays(columns, schema=self.schema)


def _list_array(items: list[np.ndarray[Any, Any]], kind: pa.ListType) -> pa.ListArray:
    offsets = np.concatenate([[0], np.cumsum([len(item) for item in items], dtype=np.int64)])
    assert offsets[-1] < 2**31, "a shard holds fewer than 2^31 tokens: list offsets have 32 bits"
    values = np.concatenate([np.empty(0, np.int32), *items])
    return pa.ListArray.from_arrays(offsets.astype(np.int32), pa.array(values, kind.value_type), type=kind)


def _index_batch(unit: WorkUnit, documents: list[Document]) -> pa.RecordBatch:
    columns = [
        pa.array([len(document.input_ids) for document in documents], pa.int32()),
        pa.array([document.trained for document in documents], pa.int32()),
        pa.array([document.trained for document in documents], pa.float32()),
        pa.array([unit.source] * len(documents), pa.int16()),
        pa.array([_digest(document) for document in documents], pa.uint64()),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=INDEX_SCHEMA)


def _digest(document: Document) -> int:
    """64 bits of the tokens: equal conversations are equal here, wherever they come from."""
    ids = document.input_ids.astype("<i4").tobytes()
    return int.from_bytes(hashlib.blake2b(ids, digest_size=8).digest(), "little")


def _record_path(store: Path, unit: int) -> Path:
    return store / "units" / f"{unit:05d}.json"


def _index_path(store: Path, unit: int) -> Path:
    return store / "units" / f"{unit:05d}.arrow"


def read_record(store: Path, unit: int, fingerprint: str) -> UnitRecord | None:
    """The record of a finished unit, or None when it is not finished or belongs to another preparation."""
    path = _record_path(store, unit)
    if not path.exists():
        return None
    facts = json.loads(path.read_text(encoding="utf-8"))
    if facts["fingerprint"] != fingerprint:
        return None
    return UnitRecord(**{**facts, "rejects": [Reject(**reject) for reject in facts["rejects"]]})


def read_unit_index(store: Path, unit: int) -> pa.RecordBatch:
    """The index rows of a finished unit."""
    with pa.OSFile(str(_index_path(store, unit))) as file:
        return pa.ipc.open_file(file).get_batch(0)
