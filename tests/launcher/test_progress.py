"""What a log says of a preparation, without a clock."""

import io
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from data_tools.config import DataConfig
from data_tools.prepare import prepare
from data_tools.records import UnitRecord
from launcher import progress
from launcher.progress import PREPARING, Tokenized, line, tokenizing


def test_the_line_of_a_log() -> None:
    done = Tokenized(started=100.0)
    done.add(103.0, rows=9_630, tokens=8_400_000, total=50_000)
    assert line(done) == "tokenizing 9,630 / 50,000 rows  3,210 rows/s  2.8 M tokens/s  ETA 0:13"


@pytest.mark.parametrize(
    ("total", "eta"), [(1, "0:00"), (6, "0:05"), (66, "1:05"), (3_601, "1:00:00"), (86_401, "1 day, 0:00:00")]
)
def test_the_time_left(total: int, eta: str) -> None:
    done = Tokenized(started=0.0)
    done.add(1.0, rows=1, tokens=950, total=total)
    assert line(done).endswith(f"1 rows/s  950 tokens/s  ETA {eta}")


def test_what_was_finished_before_says_nothing_about_the_rate() -> None:
    """90,000 rows of an earlier preparation arrive in the first second; then 10 rows a second are made."""
    done = Tokenized(started=0.0)
    for _ in range(9):
        done.keep(rows=10_000, total=100_000)
    assert line(done) == "tokenizing 90,000 / 100,000 rows  0 rows/s  0 tokens/s  ETA unknown"
    done.add(2.0, rows=20, tokens=20_000, total=100_000)
    assert line(done) == "tokenizing 90,020 / 100,000 rows  10 rows/s  10.0 k tokens/s  ETA 16:38"


def test_where_everything_was_finished_before_nothing_is_left() -> None:
    done = Tokenized(started=0.0)
    done.keep(rows=10, total=10)
    assert line(done).endswith("ETA 0:00")


def test_units_that_take_longer_than_the_window_have_a_rate() -> None:
    done = Tokenized(started=0.0)
    for minutes in range(1, 20):
        done.add(600.0 * minutes, rows=6_000, tokens=6_000_000, total=200_000)
        assert done.rates == (10.0, 10_000.0)


@given(st.lists(st.tuples(st.floats(0, 1e4), st.integers(1, 10**6), st.integers(0, 10**9)), min_size=1))
def test_any_order_of_events_gives_a_line(events: list[tuple[float, int, int]]) -> None:
    """Units may end in the same moment; rates are never negative, and no unit is lost."""
    total = sum(rows for _, rows, _ in events)
    done, now = Tokenized(started=0.0), 0.0
    for seconds, rows, tokens in events:
        now += seconds
        done.add(now, rows, tokens, total)
        assert min(done.rates) >= 0
    assert line(done).startswith(f"tokenizing {total:,} / {total:,} rows")
    assert line(done).endswith("ETA 0:00")


@pytest.mark.parametrize("terminal", [False, True])
def test_a_log_has_plain_lines_and_a_terminal_has_a_bar(
    terminal: bool, data_config: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "_SECONDS_BETWEEN_LINES", 0)
    console = Console(file=io.StringIO(), force_terminal=terminal, width=120)
    with tokenizing(console, tmp_path) as (on_start, on_unit):
        prepare(data_config, tmp_path / "tokens", on_unit, on_start=on_start)
    noted = json.loads((tmp_path / PREPARING).read_text())
    assert (noted["rows"], noted["total"], noted["seconds_left"]) == (200, 200, 0)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    if terminal:
        assert "━" in shown
    else:
        lines = shown.splitlines()
        assert len(lines) == 4  # a line each shard
        assert lines[-1].startswith("tokenizing 200 / 200 rows  ")
        assert not any("\x1b" in text for text in lines)


def test_units_of_an_interrupted_preparation_are_kept_and_not_timed(
    data_config: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(record: UnitRecord, total: int) -> None:
        if record.unit == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(data_config, tmp_path, interrupt)
    monkeypatch.setattr(progress, "_SECONDS_BETWEEN_LINES", 0)
    console = Console(file=io.StringIO(), width=120)
    with tokenizing(console, tmp_path / "run") as (on_start, on_unit):
        prepare(data_config, tmp_path, on_unit, on_start=on_start)
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert [text.partition("  ")[0] for text in lines] == [f"tokenizing {n} / 200 rows" for n in (64, 128, 192, 200)]
    assert ["0 rows/s  0 tokens/s  ETA unknown" in text for text in lines] == [True, True, False, False]
