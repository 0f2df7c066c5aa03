"""The items of a JSON file that is one array, found without parsing them: each is then read as a line of rows is.

    [{"a": "x, y"}, {"b": [1, 2]}]   →   {"a": "x, y"}    {"b": [1, 2]}

The commas that no text and no other bracket holds part the items.
"""

import json
from collections.abc import Iterator
from contextlib import suppress
from typing import IO

import numpy as np

from data_tools.files import BLANK, BLOCK, BYTE_ORDER_MARK, LONGEST_ROW, open_stream

_QUOTE, _COMMA, _OPENS, _CLOSES = range(1, 5)
_KIND_OF = {ord('"'): _QUOTE, ord(","): _COMMA, **dict.fromkeys(b"[{", _OPENS), **dict.fromkeys(b"]}", _CLOSES)}
_KINDS = bytes(_KIND_OF.get(byte, 0) for byte in range(256))


class _BrokenError(Exception):
    """What is wrong with the array itself, and how many items there were before."""


def array_items(file: str) -> Iterator[bytes]:
    """The texts of the items of an array, which need not be JSON.

    Raises:
        OSError: the array itself is broken, with the row (from 0).
    """
    try:
        with open_stream(file) as stream:
            yield from _items(stream)
    except _BrokenError as error:
        what, found = error.args
        raise OSError(f"broken at row {_first_broken(file, found)}: {what}; make or copy it again") from None


def _first_broken(file: str, found: int) -> int:
    """The first item that is no JSON: that a quote is missing is only noticed at the end."""
    row = 0
    with open_stream(file) as stream, suppress(_BrokenError, ValueError, RecursionError):
        for item in _items(stream):
            json.loads(item.decode(errors="replace"))
            row += 1
    return min(row, found)


def _items(stream: IO[bytes]) -> Iterator[bytes]:
    commas, rows = _Commas(), 0
    begun = list[bytes]()
    for block in _blocks(stream):
        start = 0
        cuts, end = commas.find(block)
        for cut in cuts:
            yield _item([*begun, block[start:cut]], rows)
            begun, start, rows = [], cut + 1, rows + 1
        begun.append(block[start:end])
        if end is not None:
            if rows or b"".join(begun).strip(BLANK):
                yield _item(begun, rows)
            _check_end(block[end:], stream, rows)
            return
        if sum(map(len, begun)) > LONGEST_ROW:
            raise _BrokenError(f"it has more than {LONGEST_ROW >> 20} MiB", rows)
    raise _BrokenError("the array has no end", rows)


def _item(parts: list[bytes], row: int) -> bytes:
    if item := b"".join(parts).strip(BLANK):
        return item
    raise _BrokenError("there is nothing beside a comma", row)


def _blocks(stream: IO[bytes]) -> Iterator[bytes]:
    """What follows the bracket that opens the array, cut anywhere but behind a backslash."""
    opened = False
    while block := stream.read(BLOCK):
        if not opened:
            block = block.removeprefix(BYTE_ORDER_MARK).lstrip(BLANK)
            if not block:
                continue
            if not block.startswith(b"["):
                raise _BrokenError("no array begins here", 0)
            block, opened = block[1:], True
        if (len(block) - len(block.rstrip(b"\\"))) % 2:
            block += stream.read(1)
        yield block


def _check_end(end: bytes, stream: IO[bytes], row: int) -> None:
    """The array is closed by its own bracket, and nothing follows."""
    if not end.startswith(b"]"):
        raise _BrokenError("it closes a bracket that is not open", row)
    rest = end[1:]
    while rest:
        if rest.strip(BLANK):
            raise _BrokenError("there is more after the end of the array", row)
        rest = stream.read(BLOCK)


class _Commas:
    """Finds the commas between items, block after block."""

    def __init__(self) -> None:
        self._depth = 1
        """How many brackets are open, that of the array included."""
        self._in_text = False

    def find(self, block: bytes) -> tuple[list[int], int | None]:
        """Where items end in the next block, and where the array does."""
        plain = block.replace(rb"\\", b"  ").replace(rb"\"", b"  ")  # from the left, so as JSON pairs them
        kinds = np.frombuffer(plain.translate(_KINDS), np.uint8)
        places = np.flatnonzero(kinds != 0)
        kinds = kinds[places]
        quotes = kinds == _QUOTE
        in_text = (np.cumsum(quotes) + self._in_text) % 2 == 1
        outside = ~quotes & ~in_text
        places, kinds = places[outside], kinds[outside]
        depths = self._depth + np.cumsum((kinds == _OPENS).astype(np.int64) - (kinds == _CLOSES))
        if len(quotes):
            self._in_text = bool(in_text[-1])
        if len(depths):
            self._depth = int(depths[-1])
        cuts = places[(kinds == _COMMA) & (depths == 1)]
        ends = places[depths == 0]
        if not len(ends):
            return cuts.tolist(), None
        return cuts[cuts < ends[0]].tolist(), int(ends[0])
