"""Following a run reads every line of metrics once, and only whole ones."""

import io
import json
from pathlib import Path

from rich.console import Console

from launcher.follow import NewLines, following
from sft.record import RunRecord


def test_every_line_is_read_once_when_it_is_complete(tmp_path: Path) -> None:
    lines = NewLines(tmp_path / "metrics.jsonl")
    assert lines.read() == []
    record = RunRecord(tmp_path, 10, writes=True)
    record.log({"step": 1})
    record.log({"step": 2})
    assert lines.read() == [{"step": 1}, {"step": 2}]
    with open(tmp_path / "metrics.jsonl", "a", encoding="utf-8") as file:
        file.write('{"step": 3')
        file.flush()
        assert lines.read() == []
        file.write("}\n")
    assert lines.read() == [{"step": 3}]
    record.rewind(1)
    record.log({"step": 2, "again": True})
    assert lines.read() == [{"step": 1}, {"step": 2, "again": True}]


def test_the_bar_tells_what_the_folder_says(tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    record = RunRecord(tmp_path, 10, writes=True)
    with following(tmp_path, 2, console) as look:
        look()
        record.status("loading", 0)
        look()
        record.status("training", 0)
        record.log({"step": 3, "loss": 1.5, "tokens_per_second": 12345.6})
        record.log({"step": 3, "validation_loss": 1.4})
        look()
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "starting 2 ranks" in shown
    assert "training  loss 1.500  12,346 tokens/s" in shown
    assert "3/10" in shown
    assert json.loads((tmp_path / "status.json").read_text())["phase"] == "training"
