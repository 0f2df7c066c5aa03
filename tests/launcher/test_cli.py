"""What the command says when it fails or is stopped."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from data_tools.config import DataConfig
from data_tools.prepare import prepare
from data_tools.records import UnitRecord
from data_tools.store import TokenStore
from launcher.cli import main

ROOT = Path(__file__).parent.parent.parent

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
    assert "made again" not in capsys.readouterr().out


def test_paths_in_errors_are_told_from_where_the_command_runs(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Below the working folder from there, below the home folder from `~`; others, and parts of others, stay."""
    (tmp_path / "home" / "work").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "home" / "work")

    def said(path: str) -> str:
        assert main(["prepare", str(recipe), f"data.sources=[{{path: {path}}}]"]) == 1
        return capsys.readouterr().err.removeprefix("error: data.sources: no file or folder matches ")

    home = tmp_path / "home"
    assert said(f"{home}/work/data/a.jsonl") == "data/a.jsonl; check the path\n"
    assert said(f"{home}/data/a.jsonl") == "~/data/a.jsonl; check the path\n"
    for other in (f"{tmp_path}/a.jsonl", f"/x{home}/a.jsonl", f"{home}work/a.jsonl"):
        assert said(other) == f"{other}; check the path\n"


def test_ctrl_c_before_the_command_has_begun(tmp_path: Path) -> None:
    """While libraries are imported: numpy, one of the first, is mapped and most of the others are not yet."""
    for signal_number, code in ((signal.SIGINT, 130), (signal.SIGTERM, -signal.SIGTERM)):
        command = [sys.executable, "-m", "launcher", "prepare", "gone.yaml"]
        started = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
        maps = Path(f"/proc/{started.pid}/maps")
        while "numpy" not in maps.read_text():
            assert started.poll() is None, started.communicate()
        started.send_signal(signal_number)
        out, err = started.communicate()
        assert (started.returncode, out) == (code, "")
        assert err == ("interrupted\n" if code == 130 else "")


def test_units_that_another_setting_makes_again_are_told(
    recipe: Path,
    data_config: DataConfig,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupt(record: UnitRecord, rows: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(data_config, tmp_path / "tokens", interrupt)
    command = ["prepare", str(recipe), "data.rows_per_shard=64", f"data.store={tmp_path / 'tokens'}"]
    assert main([*command, "data.train_on=all"]) == 0
    said = "1 finished unit of an earlier preparation is made again: data.train_on: assistant -> all"
    assert said in capsys.readouterr().out


COMMANDS = ["fetch", "prepare", "plan", "train", "eval", "export", "generate", "report", "inspect", "quickstart"]


@pytest.mark.parametrize("command", COMMANDS)
def test_with_json_an_error_is_json_too(
    command: str, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same words on stderr for people; the exit code stays what it is."""
    arguments = [command] if command == "quickstart" else [command, str(recipe)]
    assert main([*arguments, "data.max_lenght=10"]) == 1
    out, err = capsys.readouterr()
    assert not out
    assert main([*arguments, "data.max_lenght=10", "--json"]) == 1
    out, err_with_json = capsys.readouterr()
    assert err_with_json == err
    assert json.loads(out) == {"error": err.removeprefix("error: ").removesuffix("\n")}
    assert "unknown key data.max_lenght; did you mean data.max_length?" in out


def test_with_json_a_mistyped_option_and_an_unforeseen_error_are_json_too(
    recipe: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["plan", str(recipe), "--jsn"]) == 2
    assert not capsys.readouterr().out
    assert main(["plan", str(recipe), "--rank", "many", "--json"]) == 2
    out, err = capsys.readouterr()
    assert err.startswith("usage: shardtune plan") and err.endswith(f"error: {json.loads(out)['error']}\n")
    assert "--ranks: invalid int value: 'many'; see shardtune plan --help" in out

    assert main(["plan", "half\ud800.yaml", "--json"]) == 1
    assert r"half\ud800.yaml is neither" in json.loads(capsys.readouterr().out)["error"]
    monkeypatch.setattr("launcher.stages.plan_stage", lambda *_, **__: 1 // 0)
    assert main(["plan", str(recipe), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["error"].startswith("ZeroDivisionError: ")
    with pytest.raises(ZeroDivisionError):
        main(["plan", str(recipe), "--json", "--debug"])
    assert json.loads(capsys.readouterr().out)["error"].startswith("ZeroDivisionError: ")


def test_with_json_an_interruption_is_json_too(
    recipe: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("launcher.stages.prepare_stage", interrupted)
    assert main(["prepare", str(recipe), "--json"]) == 130
    assert json.loads(capsys.readouterr().out)["error"].startswith("interrupted; finished units of work are kept")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["eval", "--answers", "-2"], "--answers: '-2' is not a whole number from 0 on"),
        (["eval", "--lm-eval", "a,"], "--lm-eval: 'a,' has an empty name"),
        (["plan", "--gpu-memory", "-1"], "--gpu-memory: '-1' is not a number above 0"),
        (["plan", "--gpu-memory", "nan"], "--gpu-memory: 'nan' is not a number above 0"),
    ],
)
def test_options_without_sense_are_refused(
    arguments: list[str], said: str, recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command, *options = arguments
    assert main([command, str(recipe), *options]) == 2
    assert said in capsys.readouterr().err
