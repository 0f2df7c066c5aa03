"""Files whose rows never end are an error with a place, before memory is full of them."""

from pathlib import Path

import pytest

from data_tools.errors import UserError
from data_tools.sources import SourceFiles
from data_tools.units import work_units

BLOCK, LONGEST = 64, 256
SHORT = '{"text": "a"}\n'


@pytest.fixture(autouse=True)
def small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data_tools.units.BLOCK", BLOCK)
    monkeypatch.setattr("data_tools.units.LONGEST_ROW", LONGEST)
    monkeypatch.setattr("data_tools.csv_files.LONGEST_ROW", LONGEST)


def rows_of(file: Path, text: str) -> int:
    file.write_text(text, encoding="utf-8")
    return sum(unit.rows for unit in work_units([SourceFiles("source", (str(file),))], None))


def line(length: int) -> str:
    return f'{{"text": "{"a" * (length - 12)}"}}'


@pytest.mark.parametrize("end", ["", "\n", f"\n{SHORT * 9}"], ids=["open", "last", "followed"])
def test_a_line_without_end_is_told_with_its_place(end: str, tmp_path: Path) -> None:
    """The end is looked for a block at a time: what is a block longer than allowed is never read."""
    with pytest.raises(UserError, match=rf"lines\.jsonl.*the line that starts at byte {len(SHORT) * 5} has more than"):
        rows_of(tmp_path / "lines.jsonl", SHORT * 5 + line(LONGEST + 2 * BLOCK) + end)


@pytest.mark.parametrize("before", [0, 1, 5])
def test_a_line_of_the_greatest_length_is_a_row(before: int, tmp_path: Path) -> None:
    """Wherever it lies among blocks; and many short rows are not one long one."""
    text = SHORT * before + line(LONGEST) + "\n" + SHORT * 40
    assert len(text) > 2 * LONGEST
    assert rows_of(tmp_path / "lines.jsonl", text) == before + 41
    assert rows_of(tmp_path / "open.jsonl", text + line(LONGEST)) == before + 42


def test_a_quote_that_is_never_closed_is_told_with_its_place(tmp_path: Path) -> None:
    head = "q,a\nWhy?,So.\n"
    with pytest.raises(UserError, match=r"table\.csv.*is a quote never closed\?"):
        rows_of(tmp_path / "table.csv", head + 'Why?,"So.\n' + "Why?,So.\n" * 40)
    assert rows_of(tmp_path / "table.csv", head + "Why?,So.\n" * 40) == 41
