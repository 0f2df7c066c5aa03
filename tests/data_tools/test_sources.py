"""Every file format gives the same rows, whole or in pieces."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_tools.config import SourceConfig
from data_tools.errors import RowError, UserError
from data_tools.readers import read_rows
from data_tools.sources import SourceFiles, resolve_sources
from data_tools.units import work_units

ROWS: list[dict[str, Any]] = [{"id": str(number), "text": "x" * number} for number in range(23)]


def write(path: Path) -> Path:
    match path.name:
        case "a.jsonl" | "lines.json":
            path.write_text("\n\n".join(json.dumps(row) for row in ROWS), encoding="utf-8")
        case "a.json":
            path.write_text(json.dumps(ROWS, indent=2), encoding="utf-8")
        case "a.csv":
            path.write_text("id,text\n" + "".join(f"{row['id']},{row['text']}\n" for row in ROWS), encoding="utf-8")
        case "a.parquet":
            pq.write_table(pa.Table.from_pylist(ROWS), path, row_group_size=7)
        case "a.arrow":
            with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, pa.Table.from_pylist(ROWS).schema) as out:
                out.write_table(pa.Table.from_pylist(ROWS), max_chunksize=5)
    return path


@pytest.mark.parametrize("name", ["a.jsonl", "lines.json", "a.json", "a.csv", "a.parquet", "a.arrow"])
@pytest.mark.parametrize("rows_per_shard", [1, 5, 23, 100])
def test_units_cover_every_row_once_and_in_order(name: str, rows_per_shard: int, tmp_path: Path) -> None:
    sources = resolve_sources([SourceConfig(path=str(write(tmp_path / name)))], tmp_path)
    units = work_units(sources, rows_per_shard)
    assert [unit.number for unit in units] == list(range(-(-23 // rows_per_shard)))
    assert [row for unit in units for row in read_rows(unit)] == ROWS


def test_rows_of_several_files_are_numbered_through(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl").rename(tmp_path / "b.jsonl")
    write(tmp_path / "a.jsonl")
    units = work_units(resolve_sources([SourceConfig(path=str(tmp_path / "*.jsonl"))], tmp_path), 10)
    assert [(Path(unit.file).name, unit.first_row, unit.source_row) for unit in units] == [
        ("a.jsonl", 0, 0),
        ("a.jsonl", 10, 10),
        ("a.jsonl", 20, 20),
        ("b.jsonl", 0, 23),
        ("b.jsonl", 10, 33),
        ("b.jsonl", 20, 43),
    ]


def test_a_broken_line_is_one_refused_row(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    deep = b"[" * 100_000
    file.write_bytes(b'{"a": 1}\n{"a": \n"text"\n{"a": "\xff"}\n[{}]\n' + deep + b'\n{"a": 2}\n')
    (unit,) = work_units([SourceFiles("a", (str(file),))], 100)
    rows = list(read_rows(unit))
    assert [type(row) for row in rows] == [dict, *[RowError] * 5, dict]
    reasons = ["not JSON: Ex", "not a JSON o", "not UTF-8: i", "not a JSON o", "not JSON: ne"]
    assert [str(row)[:12] for row in rows[1:6]] == reasons


def test_csv_files_as_spreadsheets_write_them(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text("\ufeffid,text\n1,two\n1,2,3\n2," + "x" * 200_000 + "\n", encoding="utf-8")
    (unit,) = work_units([SourceFiles("a", (str(file),))], 100)
    first, ragged, long = read_rows(unit)
    assert first == {"id": "1", "text": "two"}
    assert str(ragged) == "more fields than columns"
    assert isinstance(long, dict) and len(long["text"]) == 200_000


def test_a_folder_in_the_layout_of_datasets_gives_its_splits(real_data: Path) -> None:
    folder = str(real_data / "smoltalk2_mini")
    every = resolve_sources([SourceConfig(path=folder, config="SFT", split="all")], Path())
    one = resolve_sources([SourceConfig(path=folder, config="SFT", split="s1k_1.1_think")], Path())
    assert len(every) == 25
    assert one[0] in every
    assert sum(unit.rows for unit in work_units(every, 2048)) == 5719


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"path": "nowhere/*.jsonl"}, "no file or folder matches nowhere"),
        ({"path": "{tmp}/notes.txt"}, r"notes.txt is none of .arrow, .csv, .json, .jsonl"),
        ({"path": "{tmp}/broken.parquet"}, "cannot read .*broken.parquet"),
        ({"path": "{tmp}/empty.jsonl"}, "the data set is empty"),
        ({"path": "{tmp}/object.json"}, "cannot read|not a JSON"),
    ],
)
def test_what_cannot_be_read_is_said(source: dict[str, str], message: str, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 not really")
    (tmp_path / "empty.jsonl").write_text("\n\n")
    (tmp_path / "object.json").write_text("[1, 2")
    source = {key: value.replace("{tmp}", str(tmp_path)) for key, value in source.items()}
    with pytest.raises(UserError, match=message):
        work_units(resolve_sources([SourceConfig.model_validate(source)], tmp_path), 10)


def test_an_unknown_split_lists_the_known(real_data: Path) -> None:
    source = SourceConfig(path=str(real_data / "smoltalk2_mini"), config="SFT", split="train")
    with pytest.raises(UserError, match=r"no split 'train'; give `all` or one of: .*s1k_1.1_think"):
        resolve_sources([source], Path())
