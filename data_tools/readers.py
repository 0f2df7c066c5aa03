"""The rows of a unit of work, one by one: memory is bounded by a block and a row, whatever the size of the file."""

import json
import math
import sys
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate, groupby, islice
from typing import Any

import orjson
import pyarrow as pa

from data_tools.columnar import arrow_blocks, open_parquet, parquet_places
from data_tools.csv_files import csv_data, csv_header, csv_records
from data_tools.errors import RowError, UserError
from data_tools.files import BLANK, BYTE_ORDER_MARK, Format, is_compressed, open_stream, reading
from data_tools.json_arrays import array_items

Row = dict[str, Any] | RowError
"""What a file holds at one row: its columns, or why it cannot be read."""

_FEW = 64
_ZEROS = bytes.maketrans(b"123456789", b"000000000")


@dataclass(frozen=True)
class WorkUnit:
    """Rows `[first_row, first_row + rows)` of one file, which become shard `number`."""

    number: int
    source: int
    """Position of the source in the manifest."""
    file: str
    format: Format
    first_row: int
    rows: int
    source_row: int
    """The number that `first_row` has in the whole source."""
    byte_offset: int
    """Where `first_row` starts in a JSONL or CSV file that is not compressed; elsewhere nobody asks."""


def read_rows(unit: WorkUnit) -> Iterator[Row]:
    """The rows of a unit, in order; a row that cannot be read comes as the reason why.

    Raises:
        UserError: the file is broken as a whole, or has changed since it was cut into units.
    """
    read = 0
    with reading(unit.file):
        for read, row in enumerate(islice(_rows(unit), unit.rows), start=1):  # noqa: B007 -- counts
            yield row
    if read < unit.rows:
        raise UserError(f"data.sources: {unit.file} has changed since it was read first; prepare again")


def _rows(unit: WorkUnit) -> Iterator[Row]:
    """The rows from the unit's first on."""
    match unit.format:
        case "jsonl":
            return _parse_lines(unit)
        case "csv":
            return _csv_rows(unit)
        case "json":
            return map(_parse_item, _from_first_row(unit, array_items(unit.file)))
        case "parquet" | "arrow":
            return (row for block in _blocks(unit) for row in _objects(block))


def _parse_lines(unit: WorkUnit) -> Iterator[Row]:
    """The fast path of the whole preparation: as little as possible happens to a line that is an object."""
    loads = orjson.loads
    with _lines(unit) as lines:
        for line in lines:
            try:
                row = loads(line)
            except orjson.JSONDecodeError:
                if line.strip(BLANK):
                    yield _parse_odd_line(line)
                continue
            if _may_have_long_number(line):
                yield _parse_odd_line(line)
                continue
            yield row if row.__class__ is dict else _checked(row)


def _parse_item(item: bytes) -> Row:
    """An item of an array → what a line of rows would be."""
    try:
        row = orjson.loads(item)
    except orjson.JSONDecodeError:
        return _parse_odd_line(item)
    return _parse_odd_line(item) if _may_have_long_number(item) else _checked(row)


def _may_have_long_number(line: bytes) -> bool:
    """Whether 19 digits stand in a row: orjson makes a float of a whole number that has more than 64 bits.

    Of 19 bytes in a row, three are in every sixth: few lines are looked at closely.
    """
    return b"000" in line[::6].translate(_ZEROS) and b"0" * 19 in line.translate(_ZEROS)


@contextmanager
def _lines(unit: WorkUnit) -> Iterator[Iterator[bytes]]:
    """The lines from the unit's first row on."""
    if is_compressed(unit.file):
        yield _from_first_row(unit, _text_lines(unit.file))
        return
    with open_stream(unit.file) as stream:
        stream.seek(unit.byte_offset)
        yield stream


def _text_lines(file: str) -> Iterator[bytes]:
    with open_stream(file) as stream:
        for line in stream:
            if line.strip(BLANK):
                yield line


def _parse_odd_line(line: bytes) -> Row:
    """What orjson refuses or changes: half a surrogate pair, a byte order mark, a long number, and what is no row."""
    try:
        text = line.removeprefix(BYTE_ORDER_MARK).rstrip(BLANK).decode()
        row = json.loads(text, parse_constant=_refuse_constant, parse_float=_finite)
    except UnicodeDecodeError as error:
        return RowError(f"not UTF-8: {error.reason} at byte {error.start}")
    except json.JSONDecodeError as error:
        return RowError(f"not JSON: {error.msg} at character {error.pos}")
    except ValueError:
        return RowError(f"not JSON: a number has more than {sys.get_int_max_str_digits():,} digits")
    except RecursionError:
        return RowError("not JSON: nested too deeply")
    except RowError as error:
        return error
    return _checked(row)


def _refuse_constant(name: str) -> Any:
    raise RowError(f"not JSON: {name} is no number")


def _finite(text: str) -> float:
    if math.isinf(number := float(text)):
        raise RowError(f"not JSON: {text:.20} is too large")
    return number


def _checked(row: Any) -> Row:
    if isinstance(row, list):
        return RowError("not a JSON object but an array; a file that is one array of rows must be named .json")
    return row if isinstance(row, dict) else RowError("not a JSON object")


@dataclass
class _Sequence:
    """A file that cannot be entered at any row, and how far it was read."""

    file: str
    row: int
    items: Iterator[Any]


_kept: _Sequence | None = None
"""Where the last unit of such a file ended: the next one of this process need not begin at the start again."""


def _from_first_row(unit: WorkUnit, items: Iterator[Any], start: int = 0) -> Iterator[Any]:
    """The items of a file from the unit's first row on, going on where this process stopped if that is nearer.

    Args:
        unit: the unit.
        items: of the file, from row `start` on.
        start: 0 where a file can only be read from its start.
    """
    global _kept
    sequence, _kept = _kept, None
    if sequence is None or sequence.file != unit.file or not start <= sequence.row <= unit.first_row:
        sequence = _Sequence(unit.file, start, items)
    for _ in islice(sequence.items, unit.first_row - sequence.row):
        sequence.row += 1
    try:
        for item in sequence.items:
            sequence.row += 1
            yield item
    except GeneratorExit:
        _kept = sequence
        raise


def _csv_rows(unit: WorkUnit) -> Iterator[Row]:
    header = csv_header(unit.file)
    if header is None:
        return
    for record in _csv_unit_records(unit):
        if isinstance(record, RowError):
            yield record
        elif len(record) > len(header):
            yield RowError("more fields than columns")
        else:
            yield dict.fromkeys(header) | dict(zip(header, record, strict=False))


def _csv_unit_records(unit: WorkUnit) -> Iterator[list[str] | RowError]:
    if is_compressed(unit.file):
        yield from _from_first_row(unit, csv_data(unit.file))
        return
    with open_stream(unit.file) as stream:
        stream.seek(unit.byte_offset)
        yield from (record for _, record in csv_records(stream, unit.byte_offset))


def read_blocks(unit: WorkUnit) -> Iterator[pa.RecordBatch]:
    """The rows of a unit of a columnar file, some at a time.

    Raises:
        UserError: the file is broken as a whole, or has changed since it was cut into units.
    """
    read = 0
    with reading(unit.file):
        for block in _blocks(unit):
            read += block.num_rows
            yield block
    if read < unit.rows:
        raise UserError(f"data.sources: {unit.file} has changed since it was read first; prepare again")


def _blocks(unit: WorkUnit) -> Iterator[pa.RecordBatch]:
    if unit.format == "arrow":
        yield from arrow_blocks(unit.file, unit.first_row, unit.rows)
        return
    for _, group in groupby(_parquet_places(unit), key=lambda place: id(place[0])):
        places = list(group)
        batch, first = places[0]
        yield batch.slice(first, len(places))


def _objects(block: pa.RecordBatch) -> Iterator[Row]:
    """The rows of a block, of which only the first few may be wanted."""
    for start in range(0, len(block), _FEW):
        yield from block.slice(start, _FEW).to_pylist()


def _parquet_places(unit: WorkUnit) -> Iterator[tuple[pa.RecordBatch, int]]:
    """Each row of the unit; the file is read from the row group on in which it starts."""
    with open_parquet(unit.file) as parquet:
        group_rows = [parquet.metadata.row_group(number).num_rows for number in range(parquet.num_row_groups)]
    starts = list(accumulate(group_rows, initial=0))
    group = bisect_right(starts, unit.first_row) - 1
    return islice(_from_first_row(unit, parquet_places(unit.file, group), starts[group]), unit.rows)
