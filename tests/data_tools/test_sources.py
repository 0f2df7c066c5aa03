"""Every file format gives the same rows, whole or in pieces; what is broken is said."""

import bz2
import csv
import gzip
import io
import json
import lzma
import random
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from data_tools import json_arrays
from data_tools import units as cutting
from data_tools.config import SourceConfig
from data_tools.errors import RowError, UserError
from data_tools.readers import Row, read_rows
from data_tools.sources import SourceFiles, local_splits, resolve_sources
from data_tools.units import work_units
from tests.conftest import write_jsonl

ROWS: list[dict[str, Any]] = [
    {"id": str(number), "text": f'"é" said\r\n{number}, ' + "x" * number} for number in range(23)
]
PACK: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": lambda data: pa.compress(data, "zstd", asbytes=True),
}


def csv_bytes(rows: list[dict[str, Any]]) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def json_lines(rows: list[Any]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def write(path: Path, rows: list[dict[str, Any]] = ROWS) -> Path:
    table = pa.Table.from_pylist(rows)
    match path.name:
        case "a.jsonl" | "lines.json":
            path.write_bytes(b"\n\n".join(json.dumps(row).encode() for row in rows))
        case "windows.jsonl":
            path.write_bytes(b"\xef\xbb\xbf" + b"\r\n \r\n".join(json.dumps(row).encode() for row in rows) + b"\r\n")
        case "a.json":
            path.write_text(json.dumps(rows, indent=2), encoding="utf-8")
        case "marked.json":
            path.write_text("\ufeff\n" + json.dumps(rows), encoding="utf-8")
        case "a.csv":
            path.write_bytes(csv_bytes(rows))
        case "spaced.csv":
            path.write_bytes(b"\xef\xbb\xbf\n" + csv_bytes(rows).replace(b'"\r\n', b'"\n\n'))
        case "a.parquet":
            pq.write_table(table, path, row_group_size=7)
        case "one.parquet":
            pq.write_table(table, path)
        case "stream.arrow":
            with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as out:
                out.write_table(table, max_chunksize=5)
        case "file.arrow":
            with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as out:
                out.write_table(table, max_chunksize=5)
        case name:
            plain = write(path.with_name(name.rpartition(".")[0]), rows)
            path.write_bytes(PACK[path.suffix](plain.read_bytes()))
    return path


FILES = [
    *("a.jsonl", "lines.json", "windows.jsonl", "a.json", "marked.json", "a.csv", "spaced.csv"),
    *("a.parquet", "one.parquet", "stream.arrow", "file.arrow"),
    *("a.jsonl.gz", "a.jsonl.bz2", "a.jsonl.xz", "a.jsonl.zst", "a.csv.gz", "a.json.zst"),
]


def read(path: Path, rows_per_shard: int | None = None) -> list[Row]:
    units = work_units(resolve_sources([SourceConfig(path=str(path))], Path()), rows_per_shard)
    return [row for unit in units for row in read_rows(unit)]


def reasons(rows: list[Row]) -> list[str]:
    return ["" if isinstance(row, dict) else str(row) for row in rows]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("rows_per_shard", [1, 5, 23, 100])
def test_units_cover_every_row_once_and_in_order(name: str, rows_per_shard: int, tmp_path: Path) -> None:
    sources = resolve_sources([SourceConfig(path=str(write(tmp_path / name)))], tmp_path)
    units = work_units(sources, rows_per_shard)
    assert [unit.number for unit in units] == list(range(-(-23 // rows_per_shard)))
    assert [row for unit in units for row in read_rows(unit)] == ROWS


@pytest.mark.parametrize("name", FILES)
def test_units_are_read_in_any_order(name: str, tmp_path: Path) -> None:
    """Files that are entered at their start go on from unit to unit in one process; another order is as good."""
    units = work_units(resolve_sources([SourceConfig(path=str(write(tmp_path / name)))], tmp_path), 5)
    for order in ([4, 3, 2, 1, 0], [0, 2, 4, 1, 3], [1, 1, 0]):
        for number in order:
            assert list(read_rows(units[number])) == ROWS[number * 5 : number * 5 + 5]
    begun = read_rows(units[1])
    assert [next(begun), next(begun)] == ROWS[5:7]
    del begun
    assert list(read_rows(units[1])) == ROWS[5:10]


@given(
    lines=st.lists(st.sampled_from([b"", b" ", b"\r", b"\t \r", b"{}", b" {}\r", b"{" + b" " * 40 + b"}", b"\x00"])),
    ends=st.booleans(),
    block=st.integers(1, 50),
    rows=st.integers(1, 5),
    size=st.integers(1, 100),
)
@settings(max_examples=300, deadline=None)
def test_cuts_depend_on_the_lines_only(lines: list[bytes], ends: bool, block: int, rows: int, size: int) -> None:
    """Every line with text is in one unit, whatever the blocks are; units are full."""
    text = b"\n".join(lines) + (b"\n" if ends else b"")
    starts, position = [], 0
    for line in text.split(b"\n"):
        if line.strip(b" \t\r"):
            starts.append(position)
        position += len(line) + 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cutting, "BLOCK", block)
        found = [start for part in cutting._line_starts(io.BytesIO(text)) for start in part.tolist()]
        units = list(cutting._cut_at_starts(cutting._line_starts(io.BytesIO(text)), cutting._Size(rows, size)))
    assert found == starts
    assert sum(unit_rows for unit_rows, _ in units) == len(starts)
    first = 0
    for unit_rows, offset in units:
        assert offset == starts[first]
        inside, after = starts[first : first + unit_rows], starts[first + unit_rows :][:1]
        assert 1 <= unit_rows <= rows
        assert inside[-1] < offset + size
        assert not after or unit_rows == rows or after[0] >= offset + size
        first += unit_rows


@given(parts=st.lists(st.tuples(st.integers(0, 50), st.integers(0, 5000))), rows=st.integers(1, 60))
@settings(max_examples=200, deadline=None)
def test_parts_without_row_starts_are_cut_by_their_mean(parts: list[tuple[int, int]], rows: int) -> None:
    units = [unit_rows for unit_rows, _ in cutting._cut_evenly(parts, cutting._Size(rows, 1000))]
    assert sum(units) == sum(part_rows for part_rows, _ in parts)
    assert all(1 <= unit_rows <= rows for unit_rows in units)


TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=8) | st.sampled_from(
    ['"', "\n", '",\r\n"']
)


@given(rows=st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=12), rows_per_shard=st.integers(1, 4))
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_csv_fields_may_hold_anything(rows: list[tuple[str, str]], rows_per_shard: int, tmp_path: Path) -> None:
    """Line breaks and quotes inside of fields, also where units meet."""
    expected = [{"one": one, "two": two} for one, two in rows]
    (tmp_path / "a.csv").write_bytes(csv_bytes(expected))
    assert read(tmp_path / "a.csv", rows_per_shard) == expected


def test_units_by_bytes_do_not_depend_on_the_machine(tmp_path: Path) -> None:
    """Units of 8 MiB for small inputs, of a 256th for larger ones; a row that is longer is a unit of its own."""
    row = {"text": "y" * 100_000}
    (tmp_path / "a.jsonl").write_bytes(json_lines([row] * 85 + [{"text": "z" * 10_000_000}] + [row] * 85))
    units = work_units([SourceFiles("a", (str(tmp_path / "a.jsonl"),))], None)
    assert [unit.rows for unit in units] == [84, 2, 84, 1]
    total = 104 * (tmp_path / "a.jsonl").stat().st_size
    assert cutting._unit_bytes([SourceFiles("a", (str(tmp_path / "a.jsonl"),) * 104)]) == total // 256
    assert [row for unit in units for row in read_rows(unit)][85] == {"text": "z" * 10_000_000}
    empty_rows = b"{}\n" * (cutting.MOST_ROWS + 1)
    starts = cutting._line_starts(io.BytesIO(empty_rows))
    assert [rows for rows, _ in cutting._cut_at_starts(starts, cutting._Size(cutting.MOST_ROWS, 2**28))] == [2**20, 1]


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.csv", "a.json", "one.parquet"])
def test_memory_does_not_grow_with_the_file(name: str, tmp_path: Path) -> None:
    path = write(tmp_path / name, [{"id": str(number), "text": "some words " * 100} for number in range(30_000)])
    arrow_before = pa.default_memory_pool().bytes_allocated()
    tracemalloc.start()
    for unit in work_units([SourceFiles("a", (str(path),))], None):
        for _ in read_rows(unit):
            assert pa.default_memory_pool().bytes_allocated() - arrow_before < 12_000_000
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 6_000_000 < 30_000 * 1100


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
    rows = read(file, 3)
    assert [type(row) for row in rows] == [dict, *[RowError] * 5, dict]
    reasons = ["not JSON: Ex", "not a JSON o", "not UTF-8: i", "not a JSON o", "not JSON: ne"]
    assert [str(row)[:12] for row in rows[1:6]] == reasons


@pytest.mark.parametrize("value", ["NaN", "[1, -Infinity]"])
def test_what_is_no_json_number_is_refused(value: str, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"a": ' + value + '}\n{"a": "\\ud83d"}\n', encoding="utf-8")
    refused, half = read(tmp_path / "a.jsonl")
    assert str(refused).endswith("is no number")
    assert half == {"a": "\ud83d"}  # for whoever reads the column to judge


@given(st.integers(-(10**25), 10**25), st.text(max_size=30), st.booleans())
@example(18446744073709551616, "", False)
@example(-9223372036854775809, "x", True)
def test_whole_numbers_stay_what_they_are(number: int, text: str, in_text: bool) -> None:
    """orjson makes floats of those that have more than 64 bits."""
    row = {"t": text, "a": [f"{number}{text}" if in_text else number, 0.1234567890123456789012]}
    with TemporaryDirectory() as folder:
        file = Path(folder) / "a.jsonl"
        file.write_bytes(json_lines([row, {"a": 1}]))
        first, second = read(file)
        assert (first, second) == (row, {"a": 1})
        assert isinstance(first, dict) and type(first["a"][0]) is (str if in_text else int)


def test_numbers_that_are_too_long_are_refused(tmp_path: Path) -> None:
    texts = ["9" * 5000, "1e400", "[" + "1" * 400 + "]"]
    (tmp_path / "a.jsonl").write_text("".join(f'{{"a": {text}}}\n' for text in texts))
    long, large, fine = read(tmp_path / "a.jsonl")
    assert str(long) == "not JSON: a number has more than 4,300 digits"
    assert str(large) == "not JSON: 1e400 is too large"
    assert fine == {"a": [int("1" * 400)]}


def test_rows_of_a_json_array_that_are_no_objects_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('[{"a": 1}, 2, [3], {"a": 4.5}]')
    assert reasons(read(tmp_path / "a.json", 2)) == ["", "not a JSON object", reasons(read(tmp_path / "a.json"))[2], ""]


@pytest.mark.parametrize(
    ("item", "row"),
    [
        ('{"a": "\\ud83d"}', {"a": "\ud83d"}),
        ('{"a": "\\ude00 \\ud83d\\ude00"}', {"a": "\ude00 😀"}),
        ('{"a": 123456789012345678901234567890}', {"a": 123456789012345678901234567890}),
        ('{"a": 1e400}', "not JSON: 1e400 is too large"),
        ('{"a": NaN}', "not JSON: NaN is no number"),
        ('{"a": }', "not JSON: Expecting value at character 6"),
        ('{"a": 1]', "not JSON: Expecting ',' delimiter at character 7"),
        (b'{"a": "\xff"}', "not UTF-8: invalid start byte at byte 7"),
        ('{"a": "\\\\", "b": "\\"], [{"}', {"a": "\\", "b": '"], [{'}),
    ],
)
def test_an_item_of_an_array_is_what_a_line_is(item: str | bytes, row: Any, tmp_path: Path) -> None:
    item = item.encode() if isinstance(item, str) else item
    (tmp_path / "a.json").write_bytes(b'[{"a": 1},\n' + item + b' ,{"a": [{}, 2]} ]\n')
    (tmp_path / "a.jsonl").write_bytes(b'{"a": 1}\n' + item + b'\n{"a": [{}, 2]}\n')
    for file in ("a.json", "a.jsonl"):
        for rows_per_shard in (1, 3):
            first, read_row, last = read(tmp_path / file, rows_per_shard)
            assert (first, last) == ({"a": 1}, {"a": [{}, 2]})
            assert (str(read_row) if isinstance(read_row, RowError) else read_row) == row


@given(
    rows=st.lists(
        st.dictionaries(
            st.text('[]{},"\\ é', max_size=4), st.text(max_size=9) | st.lists(st.text('[]{},"\\')), max_size=3
        )
    ),
    block=st.integers(1, 40),
    indent=st.sampled_from([None, 2]),
)
@settings(max_examples=200, deadline=None)
def test_items_do_not_depend_on_blocks(rows: list[dict[str, Any]], block: int, indent: int | None) -> None:
    text = json.dumps(rows, indent=indent, ensure_ascii=False).encode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_arrays, "BLOCK", block)
        assert [json.loads(item) for item in json_arrays._items(io.BytesIO(text))] == rows


def test_types_may_change_from_row_to_row(tmp_path: Path) -> None:
    rows = [{"a": 1}, {"a": "one"}, {"a": [1, {"b": None}]}, {"c": {}}, {"a": 1.5, "b": True}]
    (tmp_path / "a.jsonl").write_bytes(json_lines(rows))
    assert read(tmp_path / "a.jsonl", 2) == rows


def test_csv_files_as_spreadsheets_write_them(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text("\ufeffid,text\n1,two\n1,2,3\n3\n2," + "x" * 200_000 + "\n", encoding="utf-8")
    first, ragged, short, long = read(file)
    assert first == {"id": "1", "text": "two"}
    assert str(ragged) == "more fields than columns"
    assert short == {"id": "3", "text": None}
    assert isinstance(long, dict) and len(long["text"]) == 200_000


def test_broken_records_of_a_csv_file_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_bytes(b'id,text\n1,\xff\n2,"two\nlines"\n3,"open\n4,four\n')
    assert reasons(read(file, 1)) == [
        "not UTF-8: invalid start byte at byte 2 of a line",
        "",
        "not CSV: a quote is never closed",
    ]


def test_an_empty_file_among_others_has_no_rows(tmp_path: Path) -> None:
    for name, text in {"a.jsonl": '{"a": 1}\n', "b.jsonl": "", "c.csv": "", "d.csv": "a\n", "e.json": "[]"}.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "f.jsonl.gz").write_bytes(gzip.compress(b'{"a": 2}'))
    units = work_units(resolve_sources([SourceConfig(path=str(tmp_path / "*"))], tmp_path), None)
    assert [(Path(unit.file).name, unit.rows, unit.source_row) for unit in units] == [
        ("a.jsonl", 1, 0),
        ("f.jsonl.gz", 1, 1),
    ]


def damaged(data: bytes) -> bytes:
    """Other bytes in the middle."""
    middle = len(data) // 2
    return data[:middle] + bytes(255 - byte for byte in data[middle : middle + 20]) + data[middle + 20 :]


@pytest.mark.parametrize(
    ("name", "breaking", "message"),
    [
        ("a.jsonl.gz", lambda data: data[:-20], "the compressed file ends too early; make or copy it again"),
        ("a.jsonl.bz2", lambda data: data[:-20], "the compressed file ends too early; make or copy it again"),
        ("a.jsonl.xz", lambda data: data[:-20], "the compressed file ends too early; make or copy it again"),
        ("a.jsonl.zst", lambda data: data[:-20], "the compressed file ends too early; make or copy it again"),
        ("a.csv.gz", lambda data: data[:-20], "the compressed file ends too early; make or copy it again"),
        ("a.jsonl.gz", damaged, "zlib inflate failed"),
        ("a.jsonl.xz", damaged, "Corrupt input data"),
        ("a.jsonl.gz", lambda data: data + b"more", "zlib inflate failed"),
        ("a.json", lambda data: data[:-20], "broken at row 2999: the array has no end"),
        ("a.json", lambda data: data[:-1] + b",", "broken at row 3000: the array has no end"),
        ("a.json", lambda data: data[:-1] + b",]", "broken at row 3000: there is nothing beside a comma"),
        ("a.json", lambda data: data.replace(b"{", b",{", 1), "broken at row 0: there is nothing beside a comma"),
        ("a.json", lambda data: data + b",", "broken at row 2999: there is more after the end of the array"),
        ("a.json", lambda data: data + b" " * 2**21 + b"[]", "there is more after the end of the array"),
        ("a.json", lambda data: data.replace(b'"7"', b'7"'), "broken at row 7: the array has no end"),
        ("a.json", lambda data: data.replace(b'"7",', b'"7"},'), "broken at row 8: it closes a bracket that is not"),
        ("a.json", lambda data: data.replace(b'"7",', b'["7",'), "broken at row 7: the array has no end"),
        ("a.json.zst", lambda data: data[:-20], "the compressed file ends too early; make or copy it again"),
        ("a.parquet", lambda data: data[:-20], "Parquet magic bytes not found"),
        ("a.parquet", lambda data: data[:100] + data[400:], "cannot read"),
        ("file.arrow", lambda data: data[: len(data) // 2], "cannot read"),
        ("stream.arrow", lambda data: data[: len(data) // 2], "cannot read"),
        ("a.csv", lambda data: b",\n" + data, "the first line has no names of columns; add a header"),
        ("a.csv", lambda data: b"id,id\n" + data, "two columns are called 'id'; rename one"),
        ("lines.json", lambda data: b"{\n" + data, "is neither an array of rows nor one object a line"),
    ],
)
def test_a_file_that_is_broken_stops_the_run(
    name: str, breaking: Callable[[bytes], bytes], message: str, tmp_path: Path
) -> None:
    """To learn silently from a part of a file would be worse."""
    random.seed(0)
    rows = [{"id": str(number), "text": str(random.random())} for number in range(3000)]
    path = write(tmp_path / name, rows)
    path.write_bytes(breaking(path.read_bytes()))
    with pytest.raises(UserError, match=message) as error:
        read(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_files_that_change_while_they_are_read_stop_the_run(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl")
    (unit,) = work_units([SourceFiles("a", (str(path),))], None)
    path.write_bytes(b"{}\n")
    with pytest.raises(UserError, match="has changed since it was read first"):
        list(read_rows(unit))


def test_two_frames_of_zstandard_are_one_file(tmp_path: Path) -> None:
    """What `cat a.zst b.zst` and parallel compressors make; some readers stop after the first."""
    half = len(ROWS) // 2
    parts = [PACK[".zst"](json_lines(rows)) for rows in (ROWS[:half], ROWS[half:])]
    (tmp_path / "a.jsonl.zst").write_bytes(b"".join(parts))
    assert read(tmp_path / "a.jsonl.zst") == ROWS


def test_a_folder_in_the_layout_of_datasets_gives_its_splits(real_data: Path) -> None:
    folder = str(real_data / "smoltalk2_mini")
    every = resolve_sources([SourceConfig(path=folder, config="SFT", split="all")], Path())
    one = resolve_sources([SourceConfig(path=folder, config="SFT", split="s1k_1.1_think")], Path())
    assert len(every) == 25
    assert one[0] in every
    assert sum(unit.rows for unit in work_units(every, 2048)) == 5719


def test_sources_may_be_named(tmp_path: Path) -> None:
    for name in ("train.csv", "test.csv"):
        write(tmp_path / "a.csv").rename(tmp_path / name)
    both = resolve_sources([SourceConfig(path=str(tmp_path), split="all", name="mine")], tmp_path)
    assert [source.name for source in both] == ["mine/test", "mine/train"]
    (one,) = resolve_sources([SourceConfig(path=f"file://{tmp_path}/train.csv", name="mine")], tmp_path)
    assert (one.name, one.files) == ("mine", (f"{tmp_path}/train.csv",))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"path": "nowhere/*.jsonl"}, "no file or folder matches nowhere"),
        ({"path": "{tmp}/emtpy.jsonl"}, r"matches .*emtpy.jsonl \(did you mean .*/empty.jsonl\?\); check the path"),
        ({"path": "{tmp}/notes.txt"}, r"notes.txt is none of .arrow, .csv, .json, .jsonl"),
        ({"path": "{tmp}/broken.parquet"}, "cannot read .*broken.parquet"),
        ({"path": "{tmp}/empty.jsonl"}, "the data set is empty"),
        ({"path": "{tmp}/object.json"}, "cannot read .*object.json"),
        ({"path": "{tmp}/a.parquet.gz"}, ".parquet files are compressed inside"),
        ({"path": "{tmp}/bare"}, "bare.*(any data|doesn't contain)"),
        ({"path": "{tmp}/empty.jsonl", "split": "train"}, "empty.jsonl has no split; leave `split` out"),
        ({"path": "{tmp}/bare", "revision": "main"}, "is a folder here and has no revision"),
    ],
)
def test_what_cannot_be_read_is_said(source: dict[str, str], message: str, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 not really")
    (tmp_path / "empty.jsonl").write_text("\n\n")
    (tmp_path / "object.json").write_text("[1, 2")
    (tmp_path / "a.parquet.gz").write_bytes(b"")
    (tmp_path / "bare").mkdir()
    source = {key: value.replace("{tmp}", str(tmp_path)) for key, value in source.items()}
    with pytest.raises(UserError, match=message):
        work_units(resolve_sources([SourceConfig.model_validate(source)], tmp_path), 10)


def test_a_missing_configuration_lists_the_known(real_data: Path, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(
        "---\nconfigs:\n- {config_name: one, data_files: a.csv}\n- {config_name: two, data_files: a.csv}\n---\n"
    )
    write(tmp_path / "a.csv")
    for config in (None, "three"):
        with pytest.raises(UserError, match=r"\['one', 'two'\]"):
            resolve_sources([SourceConfig(path=str(tmp_path), config=config)], Path())


def test_several_splits_ask_for_one_of_them_or_all(tmp_path: Path) -> None:
    for name in ("train", "test"):
        write_jsonl(tmp_path / f"{name}.jsonl", [{"text": "a"}])
    with pytest.raises(UserError, match=r"has several splits; set `split` to one of test, train, or to all$"):
        local_splits(SourceConfig(path=str(tmp_path)))


def test_an_unknown_split_lists_the_known(real_data: Path) -> None:
    source = SourceConfig(path=str(real_data / "smoltalk2_mini"), config="SFT", split="train")
    with pytest.raises(UserError, match=r"no split train; set `split` to one of .*s1k_1.1_think.*, or to all"):
        resolve_sources([source], Path())
