"""What the command says when it is stopped."""

import sys
from pathlib import Path

import pytest

from data_tools.store import TokenStore
from launcher.cli import main

PRESSING = """
import pathlib

rows = 0

def press(row):
    global rows
    rows += 1
    if rows > 150 and not pathlib.Path("pressed").exists():
        pathlib.Path("pressed").touch()
        raise KeyboardInterrupt
    return row
"""


def test_an_interrupted_preparation_says_that_the_same_command_goes_on(
    recipe: Path,
    store: TokenStore,
    chat_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Ctrl-C in the third unit of four, once."""
    (tmp_path / "pressing_rows.py").write_text(PRESSING, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("pressing_rows", None)
    source = f"data.sources=[{{path: {chat_file}, function: 'pressing_rows:press'}}]"
    tokenizer = f"data.tokenizer={store.folder / 'tokenizer'}"
    command = ["prepare", str(recipe), source, tokenizer, "data.rows_per_shard=50"]
    assert main(command) == 130
    said = "interrupted; finished units of work are kept, and the same command goes on where it was"
    assert capsys.readouterr().err.splitlines()[-1] == said
    finished = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs" / "tiny" / "tokens").glob("shards/*")}
    assert 0 < len(finished) < 4
    assert main(command) == 0
    assert all(path.stat().st_mtime_ns == made for path, made in finished.items())
