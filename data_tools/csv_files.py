"""Records of CSV files with the bytes where they start: a quoted field may hold line breaks."""

import csv
from collections.abc import Iterator
from itertools import islice
from typing import IO

from data_tools.errors import RowError, UserError
from data_tools.files import BYTE_ORDER_MARK, LONGEST_ROW, open_stream


class _CsvLines:
    """Text lines of a CSV file for `csv.reader`, knowing where the next one begins and what was wrong."""

    def __init__(self, stream: IO[bytes], position: int) -> None:
        self.stream = stream
        self.position = position
        self.row_start = position
        self.broken: str | None = None
        self.ended = False

    def __iter__(self) -> "_CsvLines":
        return self

    def __next__(self) -> str:
        line = self.stream.readline(LONGEST_ROW)
        if not line:
            self.ended = True
            raise StopIteration
        if self.position == 0:
            self.position, line = _without_mark(line)
        self.position += len(line)
        if self.position - self.row_start >= LONGEST_ROW:
            where = f"the row that starts at byte {self.row_start}"
            raise OSError(f"{where} has more than {LONGEST_ROW >> 20} MiB; is a quote never closed?")
        try:
            return line.decode()
        except UnicodeDecodeError as error:
            self.broken = f"not UTF-8: {error.reason} at byte {error.start} of a line"
            return line.decode(errors="replace")


def _without_mark(line: bytes) -> tuple[int, bytes]:
    text = line.removeprefix(BYTE_ORDER_MARK)
    return len(line) - len(text), text


def csv_records(stream: IO[bytes], position: int = 0) -> Iterator[tuple[int, list[str] | RowError]]:
    """The byte where each record starts, and its fields or why it has none; blank lines are no records.

    Args:
        stream: at `position`.
        position: the start of a record.
    """
    csv.field_size_limit(LONGEST_ROW)
    lines = _CsvLines(stream, position)
    records = csv.reader(lines)
    while True:
        lines.row_start, lines.broken = lines.position, None
        try:
            fields = next(records)
        except StopIteration:
            return
        except csv.Error as error:
            yield lines.row_start, RowError(f"not CSV: {error}")
            continue
        if lines.broken:
            yield lines.row_start, RowError(lines.broken)
        elif lines.ended:  # the reader asked for one more line: it was inside a quoted field
            yield lines.row_start, RowError("not CSV: a quote is never closed")
        elif fields:
            yield lines.row_start, fields


def csv_header(file: str) -> list[str] | None:
    """The names of a CSV file's columns; None: the file is empty.

    Raises:
        UserError: they are not names.
    """
    with open_stream(file) as stream:
        first = next((record for _, record in csv_records(stream)), None)
    if first is None:
        return None
    if isinstance(first, RowError) or not any(name.strip() for name in first):
        raise UserError(f"data.sources: {file}: the first line has no names of columns; add a header")
    if twice := next((name for name in first if first.count(name) > 1), None):
        raise UserError(f"data.sources: {file}: two columns are called {twice!r}; rename one")
    return first


def csv_data(file: str) -> Iterator[list[str] | RowError]:
    """The records below the header."""
    with open_stream(file) as stream:
        yield from (record for _, record in islice(csv_records(stream), 1, None))
