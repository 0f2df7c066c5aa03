"""Parquet and Arrow files: blocks of rows, and the chats in them that are nothing but roles and texts, as columns."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import compress, pairwise, repeat
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from data_tools.errors import RowError
from data_tools.files import BLOCK, is_remote, open_stored
from data_tools.formats import template_arguments
from data_tools.messages import PLAIN_ROLES
from data_tools.skeleton import Facts, exact_key

_ROWS, _BYTES = 4096, 2**23
"""Of a block, at most, but for the last row."""
_MOST_ROLES = 256


@dataclass(frozen=True)
class PlainChats:
    """Chats of nothing but roles and texts, which are not blank; some rows of a block."""

    rows: NDArray[np.int64]
    """[chats] the place of each in its block, ascending."""
    starts: NDArray[np.int64]
    """[chats + 1] its first message, in the two below."""
    names: list[str]
    """The roles that there are."""
    speakers: NDArray[np.uint8]
    """[messages] which of them."""
    contents: pa.LargeStringArray
    """[messages]"""
    has_edges: NDArray[np.bool_]
    """[messages] whether a content may begin or end with white space."""
    arguments: list[dict[str, Any]]
    """[chats] for the template; none at all where no chat has any."""

    def __len__(self) -> int:
        return len(self.rows)

    def groups(self) -> tuple[list[tuple[tuple[str, ...], str | None, dict[str, Any]]], NDArray[np.int64]]:
        """What a template can tell chats by, contents aside.

        Returns:
            (roles, system message at the head, arguments) of every group, and [chats] the group of each.
        """
        edges, speakers = self.starts.tolist(), self.speakers.tobytes()
        heads = self._heads()
        keys = zip(
            [speakers[start:end] for start, end in pairwise(edges)],
            heads.indices.to_pylist(),  # None for no head
            [exact_key(Facts(None, arguments)) for arguments in self.arguments] or repeat(None),
            strict=False,
        )
        number: dict[Any, int] = {}
        group_of = [number.setdefault(key, len(number)) for key in keys]
        first = np.unique(np.array(group_of, np.int64), return_index=True)[1].tolist()
        groups = [
            (
                tuple(self.names[speaker] for speaker in self.speakers[edges[chat] : edges[chat + 1]].tolist()),
                heads[chat].as_py(),
                self.arguments[chat] if self.arguments else {},
            )
            for chat in first
        ]
        return groups, np.array(group_of, np.int64)

    def _heads(self) -> pa.DictionaryArray:
        """[chats] the system's message, where one begins with it."""
        system = self.names.index("system") if "system" in self.names else -1
        is_head = pa.array(self.speakers[self.starts[:-1]] == system)
        return self.contents.take(pc.if_else(is_head, pa.array(self.starts[:-1]), None)).dictionary_encode()

    def any_edge(self) -> NDArray[np.bool_]:
        """[chats] whether a content of theirs may begin or end with white space."""
        return np.logical_or.reduceat(self.has_edges, self.starts[:-1]) if len(self) else self.has_edges

    def only(self, kept: NDArray[np.bool_]) -> "PlainChats":
        """Those of [chats] that are kept."""
        if kept.all():
            return self  # nothing is copied
        lengths = np.diff(self.starts)
        of_kept = np.repeat(kept, lengths)
        return PlainChats(
            self.rows[kept],
            np.concatenate([[0], np.cumsum(lengths[kept])]),
            self.names,
            self.speakers[of_kept],
            self.contents.filter(pa.array(of_kept)),
            self.has_edges[of_kept],
            list(compress(self.arguments, kept.tolist())),
        )


def plain_chats(block: pa.RecordBatch, column: str) -> PlainChats:
    """The chats of a column of messages that are nothing but roles and texts; few or none where others are."""
    chats = block[column] if block.schema.names.count(column) == 1 else pa.nulls(len(block))
    kind = chats.type
    if not pa.types.is_list(kind) or not pa.types.is_struct(kind.value_type):
        return _none()
    offsets = chats.offsets.to_numpy().astype(np.int64)
    messages = chats.values.slice(offsets[0], offsets[-1] - offsets[0])
    fields = {field.name: messages.field(number) for number, field in enumerate(kind.value_type)}
    texts = [fields.pop(name, None) for name in ("role", "content")]
    if any(text is None or not _is_text(text.type) for text in texts) or messages.null_count:
        return _none()
    roles, contents = texts[0].dictionary_encode(), texts[1].cast(pa.large_string())
    try:
        contents.validate(full=True)
    except pa.ArrowInvalid:
        return _none()  # not UTF-8: whoever makes objects of the rows says so
    plain = _valid(roles) & _valid(contents)
    names, speakers = roles.dictionary.to_pylist() or [""], roles.indices.fill_null(0).to_numpy()
    plain &= np.array([name in PLAIN_ROLES for name in names])[speakers]
    if len(names) > _MOST_ROLES:
        return _none()
    for other in fields.values():
        plain &= ~_valid(other)
    has_edges = _has_edges(contents)
    for number in np.flatnonzero(has_edges & plain).tolist():
        plain[number] = bool(contents[number].as_py().strip())
    starts = offsets - offsets[0]
    wrong = np.concatenate([[0], np.cumsum(~plain)])
    kept = (wrong[starts[1:]] == wrong[starts[:-1]]) & (starts[1:] > starts[:-1]) & _valid(chats)
    kept &= ~_has_tools(block) & ~_has_system(block)
    arguments = _arguments(block, kept)
    said_by = speakers.astype(np.uint8)
    return PlainChats(np.arange(len(block)), starts, names, said_by, contents, has_edges, arguments).only(kept)


def _has_tools(block: pa.RecordBatch) -> NDArray[np.bool_]:
    if "tools" not in block.schema.names:
        return np.zeros(len(block), np.bool_)
    tools = block["tools"]
    if pa.types.is_list(tools.type):
        tools = pc.if_else(pc.equal(pc.list_value_length(tools), 0), None, tools)
    has_tools: NDArray[np.bool_] = _valid(tools)
    return has_tools


def _has_system(block: pa.RecordBatch) -> NDArray[np.bool_]:
    if "system" not in block.schema.names:
        return np.zeros(len(block), np.bool_)
    system = block["system"]
    if _is_text(system.type):
        system = pc.if_else(pc.equal(system, ""), None, system)
    has_system: NDArray[np.bool_] = _valid(system)
    return has_system


def _arguments(block: pa.RecordBatch, kept: NDArray[np.bool_]) -> list[dict[str, Any]]:
    """Template arguments of all rows; rows that have something else there are no longer kept."""
    if "chat_template_kwargs" not in block.schema.names or not block["chat_template_kwargs"].is_valid().true_count:
        return []
    arguments: list[dict[str, Any]] = [{}] * len(block)
    for row, value in enumerate(block["chat_template_kwargs"].to_pylist()):
        try:
            arguments[row] = template_arguments(value)
            exact_key(Facts(None, arguments[row]))
        except (RowError, ValueError):
            kept[row] = False
    return arguments


def _none() -> PlainChats:
    nothing, nobody, unsaid = np.empty(0, np.int64), np.empty(0, np.uint8), pa.array([], pa.large_string())
    return PlainChats(nothing, np.zeros(1, np.int64), [], nobody, unsaid, np.empty(0, np.bool_), [])


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _valid(column: pa.Array) -> NDArray[np.bool_]:
    valid: NDArray[np.bool_] = column.is_valid().to_numpy(zero_copy_only=False)
    return valid


def _has_edges(contents: pa.LargeStringArray) -> NDArray[np.bool_]:
    """Whether the first or last character of each text is anything but a printed character of ASCII."""
    offsets = np.frombuffer(contents.buffers()[1], np.int64)[contents.offset : contents.offset + len(contents) + 1]
    data = np.frombuffer(contents.buffers()[2] or b"", np.uint8)
    edges = np.ones(len(contents), np.bool_)
    some = np.flatnonzero(np.diff(offsets))
    first, last = data[offsets[some]], data[offsets[some + 1] - 1]
    edges[some] = (first <= 0x20) | (first >= 0x7F) | (last <= 0x20) | (last >= 0x7F)
    return edges


@contextmanager
def open_parquet(file: str) -> Iterator[pq.ParquetFile]:
    """A Parquet file whose pages are read when they are needed, not a row group at once."""
    with (
        open_stored(file) as stored,
        pq.ParquetFile(stored if is_remote(file) else file, pre_buffer=False, buffer_size=BLOCK) as parquet,
    ):
        yield parquet


def parquet_places(file: str, group: int) -> Iterator[tuple[pa.RecordBatch, int]]:
    """Every row from a row group on, as its batch and its place there."""
    with open_parquet(file) as parquet:
        groups = list(range(group, parquet.num_row_groups))
        sizes = [parquet.metadata.row_group(number).total_byte_size for number in range(parquet.num_row_groups)]
        at_once = _rows_at_once(parquet.metadata.num_rows, sum(sizes))
        for batch in parquet.iter_batches(at_once, groups, use_threads=False):
            for place in range(batch.num_rows):
                yield batch, place


def arrow_batches(file: str) -> Iterator[pa.RecordBatch]:
    """The record batches of an IPC file, or of the stream that `datasets` writes; local files are mapped."""
    with open_stored(file) as stored:
        source = pa.PythonFile(stored) if is_remote(file) else pa.memory_map(file)
        if stored.read(6) != b"ARROW1":
            stored.seek(0)
            yield from pa.ipc.open_stream(source)
            return
        stored.seek(0)
        reader = pa.ipc.open_file(source)
        yield from (reader.get_batch(number) for number in range(reader.num_record_batches))


def arrow_blocks(file: str, first_row: int, rows: int) -> Iterator[pa.RecordBatch]:
    """Some rows of a file, in blocks: batches of a few rows are put together, large ones are cut."""
    held: list[pa.RecordBatch] = []
    for part in _arrow_parts(file, first_row, rows):
        if held and (sum(map(len, held)) + len(part) > _ROWS or sum(each.nbytes for each in held) > _BYTES):
            yield pa.concat_batches(held)
            held = []
        held.append(part)
    if held:
        yield pa.concat_batches(held)


def _arrow_parts(file: str, first_row: int, rows: int) -> Iterator[pa.RecordBatch]:
    skip = first_row
    for batch in arrow_batches(file):
        at_once = _rows_at_once(len(batch), batch.nbytes)
        for start in range(skip, len(batch), at_once):
            part = batch.slice(start, min(at_once, rows))
            rows -= len(part)
            yield part
            if not rows:
                return
        skip = max(0, skip - len(batch))


def _rows_at_once(rows: int, size: int) -> int:
    """Rows of a block, where so many have so many bytes."""
    return max(1, min(_ROWS, _BYTES * rows // max(size, 1)))
