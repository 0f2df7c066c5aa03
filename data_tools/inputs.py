"""What there is to tokenize: files, units of work, and a look at the first rows of every source."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from data_tools.config import DataConfig, SourceConfig
from data_tools.errors import RowError, UserError
from data_tools.formats import Conversation, PlainText, RowReader, Sample, with_format
from data_tools.lock import Lock
from data_tools.readers import WorkUnit, read_rows
from data_tools.samples import write_python_docs
from data_tools.sources import SourceFiles, resolve_sources
from data_tools.units import work_units

SAMPLE_ROWS = 16
"""Rows of each source that are looked at first: they tell its format, and a fast encoder must agree with the tokenizer
on them before it is used."""


@dataclass(frozen=True)
class Input:
    """What there is to tokenize."""

    sources: list[SourceFiles]
    configs: tuple[SourceConfig, ...]
    """Of each source, with its format."""
    units: list[WorkUnit]
    chats_in: str | None
    """A source whose first rows have a conversation; None: nothing needs a chat template, as far as was looked."""


def read_input(config: DataConfig, store: Path, lock: Lock | None) -> Input:
    """Find the files, cut them into units, and look at the first row of each source."""
    sample = store / "sample" / "python_docs.jsonl"
    if any(source.sample for source in config.sources) and not sample.exists():
        write_python_docs(sample)
    sources = resolve_sources(config.sources, sample, lock)
    units = work_units(sources, config.rows_per_shard)
    configs, chats_in = [], None
    for number, source in enumerate(sources):
        asked = config.sources[source.configured]
        own = (unit for unit in units if unit.source == number)
        rows = (row for unit in own for row in read_rows(unit) if not isinstance(row, RowError))
        first = list(islice(rows, SAMPLE_ROWS))
        configs.append(_with_format(asked, first))
        if chats_in is None and _has_chat(configs[-1], first):
            chats_in = source.name
    return Input(sources, tuple(configs), units, chats_in)


def _has_chat(source: SourceConfig, rows: list[dict[str, Any]]) -> bool:
    reader = RowReader(source)
    for row in rows:
        with suppress(RowError):  # will be a reject, with its reason
            if isinstance(reader.read(row), Conversation):
                return True
    return False


def _with_format(source: SourceConfig, rows: list[dict[str, Any]]) -> SourceConfig:
    """The format, told by the first of some rows that can be read; where none can, all will be rejects."""
    if not rows:
        return source.model_copy(update={"format": "messages"}) if source.format == "auto" else source
    errors = []
    for row in rows:
        try:
            return with_format(source, row)
        except UserError as error:
            errors.append(error)
    raise errors[0]


def texts_in(given: Input) -> Iterator[str]:
    """Everything that is said, for a tokenizer to learn from."""
    for _, sample in readable(given, given.units):
        match sample:
            case Conversation():
                yield from (message["content"] for message in sample.messages if "content" in message)
            case PlainText():
                yield from (sample.prompt, sample.completion)


def readable(given: Input, units: list[WorkUnit]) -> Iterator[tuple[WorkUnit, Sample]]:
    """The readable rows of some units; the others will be rejects, with their reasons."""
    readers = {number: RowReader(config) for number, config in enumerate(given.configs) if config.format != "auto"}
    for unit in units:
        for row in read_rows(unit):
            if isinstance(row, RowError) or unit.source not in readers:
                continue
            try:
                yield unit, readers[unit.source].read(row)
            except RowError:
                continue
