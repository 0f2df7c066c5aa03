"""One unit of work → one shard: a plain class that Ray actors and the in-process path share."""

import gc
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import date

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data_tools.chat import ChatTemplate, Learning
from data_tools.chat_text import RenderedChat
from data_tools.columnar import plain_chats
from data_tools.config import SourceConfig
from data_tools.encode import Documents, Encoder
from data_tools.errors import RowError, UserError
from data_tools.formats import Conversation, PlainText, RowReader
from data_tools.mirror import Mirror, worker_folder
from data_tools.proofs import Proofs
from data_tools.readers import Row, WorkUnit, read_blocks, read_rows
from data_tools.records import UnitRecord, index_name, is_whole, read_record, record_name
from data_tools.rejects import Reject, UnitRejects, unit_rejects, writing_rejects
from data_tools.sealed import seal
from data_tools.shard_batch import index_batch, shard_batch
from data_tools.store import (
    INDEX_SCHEMA,
    file_digest,
    folder_digests,
    shard_name,
    shard_schema,
    write_arrow,
    write_json,
)
from data_tools.texts import Item, filled
from data_tools.tokenizer import PlainTextFrame, control_tokens, load_tokenizer, template_of, vocabulary_size
from data_tools.tokens import Tokens

_ROWS_AT_ONCE = 1024
_BYTES_AT_ONCE = 2**23


@dataclass(frozen=True)
class Making:
    """Everything that a maker of documents needs to know."""

    store: str
    """The folder or URI; its tokenizer is already there."""
    fingerprint: str
    """Of the whole preparation, written into records."""
    tokenizer: dict[str, str]
    """BLAKE3 of the tokenizer's files."""
    template_date: date
    learning: Learning
    sources: tuple[SourceConfig, ...]
    """In the manifest's order, with their formats."""
    engine: str
    """What encodes: `gigatoken`, `tokenizers` or `sentencepiece`."""
    sampled_every: int
    """One row of so many is proved by the tokenizer and the template themselves."""


_Part = tuple[Documents, NDArray[np.int64]]
"""Documents, and the row of each in its unit, ascending."""


@dataclass
class _Tally:
    """What is counted while a unit is made."""

    rejects: UnitRejects
    rows_out: int = 0
    rewritten: int = 0
    conversations: int = 0
    index: list[pa.RecordBatch] = field(default_factory=list)


class DocumentMaker:
    """Makes shards. Holds the tokenizer and nothing that changes: any unit, in any order, gives the same bytes.

    Raises:
        UserError: the tokenizer of the store is not the one that this preparation wrote.
    """

    def __init__(self, making: Making) -> None:
        self._making = making
        self._store = worker_folder(making.store)
        self._mirror = Mirror(self._store)
        self._mirror.pull_folder("tokenizer")
        if folder_digests(self._store / "tokenizer") != making.tokenizer:
            raise UserError(
                f"{making.store}/tokenizer is not the one that was written for this preparation; run the same command "
                f"again, and no other for this store at the same time"
            )
        for name in ("shards", "units"):
            (self._store / name).mkdir(exist_ok=True)
        tokenizer = load_tokenizer(str(self._store / "tokenizer"))
        self._template = ChatTemplate(
            template_of(tokenizer),
            tokenizer.special_tokens_map,
            making.template_date,
            making.learning,
            control_tokens(tokenizer),
        )
        # Before the encoder, which tells the tokenizer to add nothing.
        learning = making.learning
        self._frame = PlainTextFrame(tokenizer, learning.control_tokens, learning.train_end_of_turn)
        self._encoder = Encoder(tokenizer, making.engine)
        self._readers = [RowReader(source) for source in making.sources]
        self._vocab_size = vocabulary_size(tokenizer)
        self._schema = shard_schema(self._vocab_size)
        gc.freeze()  # rows come and go by the thousand: the collector need not look at all that is loaded each time

    def make_shard(self, unit: WorkUnit) -> UnitRecord:
        """Read, render, encode and write one unit; finished units are left as they are."""
        store = self._store
        if (finished := read_record(self._mirror, unit, self._making.fingerprint)) and is_whole(self._mirror, finished):
            return finished
        proofs, shard = Proofs(self._template, self._encoder, unit), store / shard_name(unit.number)
        with writing_rejects(store / unit_rejects(unit.number)) as rejects:
            tally = _Tally(rejects)
            write_arrow(shard, self._schema, self._batches(unit, tally, proofs))
        index = pa.Table.from_batches(tally.index, INDEX_SCHEMA).combine_chunks()
        write_arrow(store / index_name(unit.number), INDEX_SCHEMA, index.to_batches())
        files = [shard_name(unit.number), index_name(unit.number)]
        files += [unit_rejects(unit.number)] if rejects.counts else []
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
            blake3={name: file_digest(store / name) for name in files},
        )
        write_json(store / record_name(unit.number), seal(asdict(record)))
        self._mirror.push(*files, record_name(unit.number))
        if self._mirror.uri:
            shard.unlink()  # it is there, and may be one of very many
        return record

    def _batches(self, unit: WorkUnit, tally: _Tally, proofs: Proofs) -> Iterator[pa.RecordBatch]:
        """The unit's documents, some megabytes of text at a time."""
        reader = self._readers[unit.source]
        if unit.format in ("parquet", "arrow") and reader.chats and self._template.fills_columns:
            made = self._from_blocks(unit, reader, reader.chats, tally, proofs)
        else:
            made = ([part] for part in self._from_rows(unit, enumerate(read_rows(unit)), tally, proofs))
        for parts in made:
            yield from self._batch(unit, parts, tally)

    def _from_blocks(
        self, unit: WorkUnit, reader: RowReader, column: str, tally: _Tally, proofs: Proofs
    ) -> Iterator[list[_Part]]:
        """Of each block the chats that have skeletons, as columns, and the other rows, one by one."""
        first = 0
        for block in read_blocks(unit):
            chats = plain_chats(block, column)
            skeletons, which = self._template.skeletons(chats)
            chats, which = chats.only(which >= 0), which[which >= 0]
            parts = []
            if len(chats):
                sampled = chats.rows[(first + chats.rows) % self._making.sampled_every == 0]
                for place, row in zip(sampled.tolist(), block.take(pa.array(sampled)).to_pylist(), strict=True):
                    self._make_items(row, reader, first + place, proofs)  # to be looked at
                documents = self._encoder.encode_texts(filled(chats, skeletons, which))
                proofs.compare(documents, first + chats.rows)
                tally.conversations += len(chats)
                parts.append((documents, first + chats.rows))
            others = np.delete(np.arange(len(block)), chats.rows)
            rows = zip((first + others).tolist(), block.take(pa.array(others)).to_pylist(), strict=True)
            yield [*parts, *self._from_rows(unit, rows, tally, proofs)]
            first += len(block)

    def _from_rows(
        self, unit: WorkUnit, numbered: Iterable[tuple[int, Row]], tally: _Tally, proofs: Proofs
    ) -> Iterator[_Part]:
        """The documents of rows and their places in the unit."""
        rows: list[int] = []
        items: list[Item] = []
        size = 0
        reader = self._readers[unit.source]
        for position, row in numbered:
            try:
                made = self._make_items(row, reader, position, proofs)
            except RowError as error:
                tally.rejects.append(Reject(str(unit.file), unit.first_row + position, "rejected", str(error)))
                continue
            for item in made:
                rows.append(position)
                items.append(item)
                size += item.size
            if len(rows) >= _ROWS_AT_ONCE or size >= _BYTES_AT_ONCE:
                yield self._encoded(rows, items, tally, proofs)
                rows, items, size = [], [], 0
        if items:
            yield self._encoded(rows, items, tally, proofs)

    def _encoded(self, rows: list[int], items: list[Item], tally: _Tally, proofs: Proofs) -> _Part:
        documents, positions = self._encoder.encode(items), np.array(rows, np.int64)
        proofs.compare(documents, positions)
        tally.conversations += sum(not isinstance(item, Tokens) for item in items)
        tally.rewritten += len({row for row, item in zip(rows, items, strict=True) if _is_rewritten(item)})
        return documents, positions

    def _make_items(self, row: Row, reader: RowReader, position: int, proofs: Proofs) -> Sequence[Item]:
        """The documents of one row, not yet encoded.

        Raises:
            RowError: it becomes none.
        """
        if isinstance(row, RowError):
            raise row
        sample = reader.read(row)
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

    def _batch(self, unit: WorkUnit, parts: list[_Part], tally: _Tally) -> Iterator[pa.RecordBatch]:
        """Documents in the order of their rows, but for those with nothing to train on."""
        if not parts:
            return
        positions = np.concatenate([rows for _, rows in parts])
        trained = np.concatenate([documents.trained for documents, _ in parts])
        order = np.argsort(positions, kind="stable")
        order = order[trained[order] > 0]
        with_document = np.unique(positions[order])
        tally.rows_out += len(with_document)
        for position in np.setdiff1d(positions, with_document).tolist():
            number = unit.first_row + position
            tally.rejects.append(Reject(str(unit.file), number, "dropped", "nothing to train on"))
        tally.index.append(_in_order([index_batch(unit, *part) for part in parts], order))
        yield _in_order([shard_batch(self._schema, unit, *part) for part in parts], order)


def _in_order(batches: list[pa.RecordBatch], order: NDArray[np.int64]) -> pa.RecordBatch:
    """Some rows of several batches as one."""
    if len(batches) == 1 and len(order) == len(batches[0]):  # one part is in order
        return batches[0]
    return pa.concat_batches(batches).take(pa.array(order))


def _is_rewritten(item: Item) -> bool:
    return isinstance(item, RenderedChat) and item.rewritten
