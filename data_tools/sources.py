"""Files, folders and the embedded sample → fixed ranges of rows, the units of work.

A unit depends on the sources and `rows_per_shard` only, never on the number of workers: any worker, at any time, on any
node, makes the same shard of it.
"""

import csv
import glob
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data_tools.config import SourceConfig
from data_tools.errors import RowError, UserError

_FORMATS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".parquet": "parquet",
    ".arrow": "arrow",
}

_REST = "\0 fields without a column"

Row = dict[str, Any] | RowError
"""What a file holds at one row: its columns, or why it cannot be read."""


@dataclass(frozen=True)
class SourceFiles:
    """One named source: its data files in a fixed order."""

    name: str
    files: tuple[Path, ...]
    configured: int = 0
    """Its position in `data.sources`; `split: all` makes several sources of one."""


@dataclass(frozen=True)
class WorkUnit:
    """Rows `[first_row, first_row + rows)` of one file, which become shard `number`."""

    number: int
    source: int
    """Position of the source in the manifest."""
    file: Path
    first_row: int
    rows: int
    source_row: int
    """The number that `first_row` has in the whole source."""
    byte_offset: int
    """Where `first_row` starts in a JSONL file; 0 elsewhere."""


def resolve_sources(configs: list[SourceConfig], sample_file: Path) -> list[SourceFiles]:
    """Find the files of every source.

    Args:
        configs: `data.sources`.
        sample_file: where the embedded sample lies.

    Raises:
        UserError: nothing is there, or it is not clear which split is meant.
    """
    found: list[SourceFiles] = []
    for number, config in enumerate(configs):
        sources = [SourceFiles(config.sample, (sample_file,))] if config.sample else _resolve_path(config)
        found.extend(replace(source, configured=number) for source in sources)
    return found


def _resolve_path(config: SourceConfig) -> list[SourceFiles]:
    path = Path(str(config.path))
    if path.is_dir():
        return _resolve_folder(path, config)
    files = sorted(Path(name) for name in glob.glob(str(path), recursive=True))  # noqa: PTH207 -- also absolute
    if not files:
        raise UserError(f"data.sources: no file or folder matches {path}; check it (hub data sets: download first)")
    return [_source(path.stem, files)]


def _source(name: str, files: list[Path]) -> SourceFiles:
    for file in files:
        if file.suffix.lower() not in _FORMATS:
            raise UserError(f"data.sources: {file} is none of {', '.join(sorted(_FORMATS))}; convert or rename it")
    return SourceFiles(name, tuple(sorted(files)))


def _resolve_folder(folder: Path, config: SourceConfig) -> list[SourceFiles]:
    """Let `datasets` read the layout (README metadata, split names in file names), then take the files themselves."""
    import datasets

    try:
        builder = datasets.load_dataset_builder(str(folder), config.config)
    except (ValueError, FileNotFoundError, datasets.exceptions.DatasetNotFoundError) as error:
        raise UserError(f"data.sources: {folder}: {str(error).splitlines()[0]}") from None
    data_files = {str(split): files for split, files in (builder.config.data_files or {}).items()}
    if config.split == "all":
        splits = sorted(data_files)
    elif config.split is None and len(data_files) == 1:
        splits = list(data_files)
    elif config.split in data_files:
        splits = [str(config.split)]
    else:
        known = ", ".join(sorted(data_files)) or "none"
        raise UserError(f"data.sources: {folder} has no split {config.split!r}; give `all` or one of: {known}")
    return [_source(split, [Path(str(file)) for file in data_files[split]]) for split in splits]


def work_units(sources: list[SourceFiles], rows_per_shard: int) -> list[WorkUnit]:
    """Cut every file into ranges of `rows_per_shard` rows.

    Raises:
        UserError: a file cannot be read, or there is no row at all.
    """
    units: list[WorkUnit] = []
    for source, files in enumerate(sources):
        earlier_rows = 0  # of this source, in the files before this one
        for file in files.files:
            file_rows = 0
            for first_row, rows, byte_offset in _ranges(file, rows_per_shard):
                units.append(WorkUnit(len(units), source, file, first_row, rows, earlier_rows + first_row, byte_offset))
                file_rows = first_row + rows
            earlier_rows += file_rows
    if not units:
        names = ", ".join(str(file) for files in sources for file in files.files)
        raise UserError(f"data.sources: there is no row in {names}; the data set is empty")
    return units


def _ranges(file: Path, size: int) -> Iterator[tuple[int, int, int]]:
    """(first row, rows, byte offset) of each unit of a file."""
    try:
        if _format(file) == "jsonl":
            yield from _line_ranges(file, size)
            return
        total = _count_rows(file)
    except (OSError, ValueError, csv.Error, pa.ArrowInvalid) as error:
        raise UserError(f"data.sources: cannot read {file}: {error}") from None
    for first_row in range(0, total, size):
        yield first_row, min(size, total - first_row), 0


def _format(file: Path) -> str:
    """By the file's ending; a `.json` file that does not start with `[` has one object a line."""
    name = _FORMATS[file.suffix.lower()]
    if name == "json":
        with open(file, "rb") as start:
            return "json" if start.read(64).lstrip().startswith(b"[") else "jsonl"
    return name


def _line_ranges(file: Path, size: int) -> Iterator[tuple[int, int, int]]:
    """Lines with text are rows; the byte where each range starts lets a worker begin there at once."""
    first_row = rows = start = position = 0
    with open(file, "rb") as lines:
        for line in lines:
            if rows == size:
                yield first_row, rows, start
                first_row, rows, start = first_row + rows, 0, position
            rows += bool(line.strip())
            position += len(line)
    if rows:
        yield first_row, rows, start


def _count_rows(file: Path) -> int:
    match _format(file):
        case "parquet":
            return int(pq.read_metadata(file).num_rows)
        case "arrow":
            return int(_read_arrow_file(file).num_rows)
        case "csv":
            return len(_read_csv(file))
        case _:
            return len(_read_json_array(file))


def read_rows(unit: WorkUnit) -> Iterator[Row]:
    """The rows of a unit, in order; a row that cannot be read comes as the reason why."""
    match _format(unit.file):
        case "jsonl":
            yield from _read_lines(unit)
        case "parquet":
            yield from _read_parquet(unit)
        case "arrow":
            yield from _read_arrow_file(unit.file).slice(unit.first_row, unit.rows).to_pylist()
        case "csv":
            yield from _read_csv(unit.file)[unit.first_row : unit.first_row + unit.rows]
        case _:
            rows = _read_json_array(unit.file)[unit.first_row : unit.first_row + unit.rows]
            yield from (row if isinstance(row, dict) else RowError("not a JSON object") for row in rows)


def _read_lines(unit: WorkUnit) -> Iterator[Row]:
    left = unit.rows
    with open(unit.file, "rb") as lines:
        lines.seek(unit.byte_offset)
        for line in lines:
            if not line.strip():
                continue
            yield _parse_line(line)
            left -= 1
            if left == 0:
                return


def _parse_line(line: bytes) -> Row:
    try:
        row = json.loads(line)
    except UnicodeDecodeError as error:
        return RowError(f"not UTF-8: {error.reason} at byte {error.start}")
    except json.JSONDecodeError as error:
        return RowError(f"not JSON: {error}")
    except RecursionError:
        return RowError("not JSON: nested too deeply")
    if isinstance(row, list):
        return RowError("not a JSON object but an array; a file that is one array of rows must be named .json")
    return row if isinstance(row, dict) else RowError("not a JSON object")


def _read_parquet(unit: WorkUnit) -> Iterator[Row]:
    """Only the row groups that the unit touches, a few hundred rows at a time."""
    with pq.ParquetFile(unit.file) as parquet:
        group_start = 0
        for group in range(parquet.num_row_groups):
            group_rows = parquet.metadata.row_group(group).num_rows
            skip = max(0, unit.first_row - group_start)
            take = min(group_rows, unit.first_row + unit.rows - group_start) - skip
            if take > 0:
                table = parquet.read_row_group(group).slice(skip, take)
                for batch in table.to_batches(max_chunksize=256):
                    yield from batch.to_pylist()
            group_start += group_rows


def _read_arrow_file(file: Path) -> pa.Table:
    """An IPC file, or the stream that `datasets` writes."""
    mapped = pa.memory_map(str(file))
    try:
        return pa.ipc.open_file(mapped).read_all()
    except pa.ArrowInvalid:
        return pa.ipc.open_stream(mapped).read_all()


def _read_csv(file: Path) -> list[Row]:
    csv.field_size_limit(2**31 - 1)
    with open(file, encoding="utf-8-sig", newline="") as text:
        rows = csv.DictReader(text, restkey=_REST)
        return [RowError("more fields than columns") if _REST in row else row for row in rows]


def _read_json_array(file: Path) -> list[Any]:
    value = json.loads(file.read_bytes())
    if not isinstance(value, list):
        raise ValueError("not a JSON array of rows")
    return value
