"""One unit of work → one shard: a plain class that Ray actors and the in-process path share."""

import gc
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import date
from typing import Any

import numpy as np
import pyarrow as pa

from data_tools.chat import ChatTemplate, Learning
from data_tools.chat_text import RenderedChat
from data_tools.config import SourceConfig
from data_tools.encode import Documents, Encoder, Item
from data_tools.errors import RowError
from data_tools.formats import Conversation, PlainText, RowReader, Tokens
from data_tools.mirror import Mirror, worker_folder
from data_tools.proofs import Proofs
from data_tools.readers import Row, WorkUnit, read_rows
from data_tools.records import UnitRecord, index_name, read_record, record_name
from data_tools.rejects import Reject, UnitRejects, unit_rejects, writing_rejects
from data_tools.store import INDEX_SCHEMA, file_digest, shard_name, shard_schema, write_arrow, write_json
from data_tools.tokenizer import PlainTextFrame, control_tokens, load_tokenizer, vocabulary_size

_ROWS_AT_ONCE = 1024
_BYTES_AT_ONCE = 2**23


@dataclass(frozen=True)
class Making:
    """Everything that a maker of documents needs to know."""

    store: str
    """The folder or URI; its tokenizer is already there."""
    fingerprint: str
    """Of the whole preparation, written into records."""
    template_date: date
    learning: Learning
    sources: tuple[SourceConfig, ...]
    """In the manifest's order, with their formats."""
    engine: str
    """What encodes: `gigatoken` or `tokenizers`."""
    sampled_every: int
    """One row of so many is proved by the tokenizer and the template themselves."""


@dataclass
class _Tally:
    """What is counted while a unit is made."""

    rejects: UnitRejects
    rows_out: int = 0
    rewritten: int = 0
    conversations: int = 0
    index: list[pa.RecordBatch] = field(default_factory=list)


class DocumentMaker:
    """Makes shards. Holds the tokenizer and nothing that changes: any unit, in any order, gives the same bytes."""

    def __init__(self, making: Making) -> None:
        self._making = making
        self._store = worker_folder(making.store)
        self._mirror = Mirror(self._store)
        self._mirror.pull_folder("tokenizer")
        for name in ("shards", "units"):
            (self._store / name).mkdir(exist_ok=True)
        tokenizer = load_tokenizer(str(self._store / "tokenizer"))
        self._template = ChatTemplate(
            str(tokenizer.chat_template),
            tokenizer.special_tokens_map,
            making.template_date,
            making.learning,
            control_tokens(tokenizer),
        )
        self._frame = PlainTextFrame(tokenizer)  # before the encoder, which tells the tokenizer to add nothing
        self._encoder = Encoder(tokenizer, making.engine)
        self._readers = [RowReader(source) for source in making.sources]
        self._vocab_size = vocabulary_size(tokenizer)
        self._schema = shard_schema(self._vocab_size)
        gc.freeze()  # rows come and go by the thousand: the collector need not look at all that is loaded each time

    def make_shard(self, unit: WorkUnit) -> UnitRecord:
        """Read, render, encode and write one unit; finished units are left as they are."""
        store = self._store
        if (finished := read_record(self._mirror, unit, self._making.fingerprint)) and self._is_there(finished):
            return finished
        proofs, shard = Proofs(self._template, self._encoder), store / shard_name(unit.number)
        with writing_rejects(store / unit_rejects(unit.number)) as rejects:
            tally = _Tally(rejects)
            write_arrow(shard, self._schema, self._batches(unit, tally, proofs))
        index = pa.Table.from_batches(tally.index, INDEX_SCHEMA).combine_chunks()
        write_arrow(store / index_name(unit.number), INDEX_SCHEMA, index.to_batches())
        record = UnitRecord(
            fingerprint=self._making.fingerprint,
            cut=unit,
            rows_out=tally.rows_out,
            documents=len(index),
            tokens=int(np.sum(index["length"].to_numpy(), dtype=np.int64)),
            trained_tokens=int(np.sum(index["trained"].to_numpy(), dtype=np.int64)),
            rewritten=tally.rewritten,
            proved=proofs.counts(tally.conversations),
            rejected=rejects.counts["rejected"],
            dropped=rejects.counts["dropped"],
            blake3=file_digest(shard),
        )
        write_json(store / record_name(unit.number), asdict(record))
        self._mirror.push(*record.files, record_name(unit.number))
        if self._mirror.uri:
            shard.unlink()  # it is there, and may be one of very many
        return record

    def _is_there(self, record: UnitRecord) -> bool:
        """Whether the shard is what its record says; one in an object store is compared when it comes down."""
        files = [self._store / name for name in record.files]
        return bool(self._mirror.uri) or (
            all(file.exists() for file in files) and file_digest(files[0]) == record.blake3
        )

    def _batches(self, unit: WorkUnit, tally: _Tally, proofs: Proofs) -> Iterator[pa.RecordBatch]:
        """The unit's documents, some megabytes of text at a time."""
        rows: list[int] = []
        items: list[Item] = []
        size = 0
        for position, row in enumerate(read_rows(unit)):
            try:
                made = self._make_items(row, unit.source, position, proofs)
            except RowError as error:
                tally.rejects.append(Reject(str(unit.file), unit.first_row + position, "rejected", str(error)))
                continue
            for item in made:
                rows.append(position)
                items.append(item)
                size += item.size
            if len(rows) >= _ROWS_AT_ONCE or size >= _BYTES_AT_ONCE:
                yield from self._batch(unit, rows, items, tally, proofs)
                rows, items, size = [], [], 0
        yield from self._batch(unit, rows, items, tally, proofs)

    def _make_items(self, row: Row, source: int, position: int, proofs: Proofs) -> Sequence[Item]:
        """The documents of one row, not yet encoded.

        Raises:
            RowError: it becomes none.
        """
        if isinstance(row, RowError):
            raise row
        sample = self._readers[source].read(row)
        match sample:
            case Conversation():
                chats = self._template.chats(sample)
                if position % self._making.sampled_every == 0:
                    proofs.look(position, sample, chats)
                return chats
            case PlainText():
                return [self._frame.render(sample, everything=self._making.learning.train_on == "all")]
            case Tokens():
                if sample.input_ids and not 0 <= min(sample.input_ids) <= max(sample.input_ids) < self._vocab_size:
                    raise RowError(f"`input_ids` has ids outside the vocabulary of {self._vocab_size}")
                return [sample]

    def _batch(
        self, unit: WorkUnit, rows: list[int], items: list[Item], tally: _Tally, proofs: Proofs
    ) -> Iterator[pa.RecordBatch]:
        if not items:
            return
        documents = self._encoder.encode(items)
        positions = np.array(rows, np.int64)
        proofs.compare(documents, positions)
        kept = documents.trained > 0
        with_document = np.unique(positions[kept])
        tally.rows_out += len(with_document)
        tally.conversations += sum(not isinstance(item, Tokens) for item in items)
        tally.rewritten += len({row for row, item in zip(rows, items, strict=True) if _is_rewritten(item)})
        for position in np.setdiff1d(positions, with_document).tolist():
            number = unit.first_row + position
            tally.rejects.append(Reject(str(unit.file), number, "dropped", "nothing to train on"))
        batch = self._shard_batch(unit, documents, positions)
        index = _index_batch(unit, documents, positions)
        if not kept.all():
            batch, index = batch.filter(pa.array(kept)), index.filter(pa.array(kept))
        tally.index.append(index)
        yield batch

    def _shard_batch(self, unit: WorkUnit, documents: Documents, positions: np.ndarray[Any, Any]) -> pa.RecordBatch:
        token = self._schema.field("input_ids").type.value_type
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
        return pa.RecordBatch.from_arrays(columns, schema=self._schema)


def _is_rewritten(item: Item) -> bool:
    return isinstance(item, RenderedChat) and item.rewritten


def _list_array(values: np.ndarray[Any, Any], offsets: np.ndarray[Any, Any]) -> pa.ListArray:
    return pa.ListArray.from_arrays(_array(offsets.astype(np.int32)), _array(values))


def _array(values: np.ndarray[Any, Any]) -> pa.Array:
    """Numbers as an Arrow array, without copying (and without pandas, which `pa.array` would import first)."""
    kind = pa.from_numpy_dtype(values.dtype)
    return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(np.ascontiguousarray(values))])


def _weights_array(weights: list[list[float] | None]) -> pa.Array:
    kind = pa.list_(pa.float32())
    return pa.array(weights, kind) if any(weights) else pa.nulls(len(weights), kind)


def _index_batch(unit: WorkUnit, documents: Documents, positions: np.ndarray[Any, Any]) -> pa.RecordBatch:
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
