"""Files → fixed ranges of rows, the units of work.

A unit depends on the sources and `rows_per_shard` only, never on the number of workers: any worker, at any time, on any
node, makes the same shard of it.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import IO

import numpy as np
from numpy.typing import NDArray

from data_tools.columnar import arrow_batches, open_parquet
from data_tools.csv_files import csv_header, csv_records
from data_tools.errors import UserError
from data_tools.files import (
    BLANK,
    BLOCK,
    LONGEST_ROW,
    Format,
    data_format,
    file_size,
    is_compressed,
    open_stream,
    reading,
)
from data_tools.json_arrays import array_items
from data_tools.readers import WorkUnit
from data_tools.sources import SourceFiles

MOST_ROWS = 2**20
"""Rows of a unit at most."""
UNITS = 256
"""About so many units are made of all sources together, as long as they are neither small nor large."""
SMALLEST, LARGEST = 2**23, 2**28
"""Bytes of text in a unit."""

_Starts = NDArray[np.int64]
"""Bytes where rows start, ascending."""
_NEWLINE = ord("\n")


@dataclass(frozen=True)
class _Size:
    """A unit ends with the row that reaches one of these."""

    rows: int
    bytes: int


def work_units(sources: list[SourceFiles], rows_per_shard: int | None) -> list[WorkUnit]:
    """Cut every file into ranges of rows.

    Args:
        sources: what `resolve_sources` found.
        rows_per_shard: rows of a unit; None: by bytes, a 256th of all files together, 8 to 256 MiB.

    Raises:
        UserError: a file cannot be read, or there is no row at all.
    """
    size = _Size(rows_per_shard, 2**62) if rows_per_shard else _Size(MOST_ROWS, _unit_bytes(sources))
    units: list[WorkUnit] = []
    for source, files in enumerate(sources):
        earlier_rows = 0  # of this source, in the files before this one
        for file in files.files:
            form = data_format(file)
            first_row = 0
            with reading(file):
                for rows, offset in _ranges(file, form, size):
                    source_row = earlier_rows + first_row
                    units.append(WorkUnit(len(units), source, file, form, first_row, rows, source_row, offset))
                    first_row += rows
            earlier_rows += first_row
    if not units:
        names = ", ".join(file for files in sources for file in files.files)
        raise UserError(f"data.sources: there is no row in {names}; the data set is empty")
    return units


def _unit_bytes(sources: list[SourceFiles]) -> int:
    total = sum(file_size(file) for files in sources for file in files.files)
    return min(max(total // UNITS, SMALLEST), LARGEST)


def _ranges(file: str, form: Format, size: _Size) -> Iterator[tuple[int, int]]:
    """(rows, byte offset) of each unit of a file."""
    match form:
        case "jsonl":
            with open_stream(file) as stream:
                yield from _cut_at_starts(_line_starts(stream), size)
        case "csv":
            if csv_header(file) is not None:
                with open_stream(file) as stream:
                    yield from _cut_at_starts(_record_starts(stream), size)
        case "json":
            rows = sum(1 for _ in array_items(file))
            yield from _cut_evenly([(rows, _text_bytes(file))], size)
        case "parquet":
            with open_parquet(file) as parquet:
                groups = [parquet.metadata.row_group(number) for number in range(parquet.num_row_groups)]
                yield from _cut_evenly([(group.num_rows, group.total_byte_size) for group in groups], size)
        case "arrow":
            yield from _cut_evenly(((batch.num_rows, batch.nbytes) for batch in arrow_batches(file)), size)


def _text_bytes(file: str) -> int:
    """Bytes without compression."""
    if not is_compressed(file):
        return file_size(file)
    with open_stream(file) as stream:
        return sum(len(block) for block in iter(lambda: stream.read(BLOCK), b""))


def _cut_at_starts(blocks: Iterable[_Starts], size: _Size) -> Iterator[tuple[int, int]]:
    """Units of rows whose starts are known: a unit ends before the first row that starts `size.bytes` after it."""
    rows = start = 0
    for starts in blocks:
        place = 0
        while place < len(starts):
            if rows == 0:
                start = int(starts[place])
            end = min(place + size.rows - rows, int(np.searchsorted(starts, start + size.bytes)))
            rows += min(end, len(starts)) - place
            if end < len(starts):
                yield rows, start
                rows = 0
            place = end
    if rows:
        yield rows, start


def _cut_evenly(parts: Iterable[tuple[int, int]], size: _Size) -> Iterator[tuple[int, int]]:
    """Units of parts of a file: (rows, bytes) each, as if all rows of a part were equally long."""
    rows, bytes_left = 0, float(size.bytes)
    for part_rows, part_bytes in parts:
        while part_rows:
            row_bytes = max(1, part_bytes) / part_rows
            take = min(part_rows, size.rows - rows, math.ceil(min(bytes_left / row_bytes, MOST_ROWS)))
            rows, bytes_left = rows + take, bytes_left - take * row_bytes
            part_rows, part_bytes = part_rows - take, part_bytes - round(take * row_bytes)
            if rows == size.rows or bytes_left <= 0:
                yield rows, 0
                rows, bytes_left = 0, float(size.bytes)
    if rows:
        yield rows, 0


def _line_starts(stream: IO[bytes]) -> Iterator[_Starts]:
    """Where the lines with text start, a block at a time: lines may be longer than a block."""
    position = line_start = 0
    has_text = False  # what is known of the line at line_start, which no newline has ended yet
    while block := stream.read(BLOCK):
        newlines = np.flatnonzero(np.frombuffer(block, np.uint8) == _NEWLINE)
        if len(newlines):
            has_text = has_text or bool(block[: newlines[0]].strip(BLANK))
            inner = newlines[:-1] + 1
            starts = position + np.delete(inner, _blank_lines(block, inner))
            yield np.concatenate([[line_start], starts]) if has_text else starts
            line_start = position + int(newlines[-1]) + 1
            has_text = bool(block[newlines[-1] + 1 :].strip(BLANK))
        else:
            has_text = has_text or bool(block.strip(BLANK))
        position += len(block)
        if position - line_start > LONGEST_ROW:
            raise OSError(f"the line that starts at byte {line_start} has more than {LONGEST_ROW >> 20} MiB")
    if has_text:
        yield np.array([line_start])


def _blank_lines(block: bytes, starts: _Starts) -> list[int]:
    """Which of the lines that start there have no text; few lines begin with white space at all."""
    first_bytes = np.frombuffer(block, np.uint8)[starts]
    doubtful = np.flatnonzero(first_bytes <= ord(" ")).tolist()
    return [place for place in doubtful if not block[starts[place] : block.index(b"\n", starts[place])].strip(BLANK)]


def _record_starts(stream: IO[bytes]) -> Iterator[_Starts]:
    """Where the records below the header of a CSV file start."""
    records = csv_records(stream)
    next(records)
    while starts := [start for (start, _), _ in zip(records, range(4096), strict=False)]:
        yield np.array(starts)
