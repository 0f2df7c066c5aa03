"""Shares of a preparation: processes that meet only in the store's folder, killed and started again as they please."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import fsspec
import pytest

from data_tools.claim import LOCK, locked, shared
from data_tools.config import DataConfig
from data_tools.errors import UserError
from data_tools.mirror import Mirror, local_folder
from data_tools.prepare import prepare
from data_tools.records import UnitRecord
from data_tools.share import MadeShare, Share, prepare_share
from data_tools.store import TokenStore
from data_tools.unfinished import join
from launcher.cli import main
from tests.conftest import chats, write_jsonl
from tests.data_tools.processes import KillAfter, Wait, start
from tests.data_tools.test_prepare import content, with_rejects
from tests.object_store import serving_s3

UNITS = 24


@pytest.fixture(scope="module")
def many_units(tmp_path_factory: pytest.TempPathFactory) -> DataConfig:
    file = write_jsonl(tmp_path_factory.mktemp("shares") / "chats.jsonl", chats(UNITS * 50))
    values = {"sources": [{"path": str(file)}], "tokenizer": {"vocab_size": 400}, "rows_per_shard": 50}
    return DataConfig.model_validate(values)


@pytest.fixture(scope="module")
def alone(many_units: DataConfig, tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    """What one process makes."""
    return prepare(many_units, tmp_path_factory.mktemp("alone"))


FINISH = """
import sys
from pathlib import Path
import data_tools.prepare
from data_tools.config import DataConfig
data_tools.prepare.IN_PROCESS_ROWS = 100
data_tools.prepare.prepare(DataConfig.model_validate_json(sys.argv[1]), Path(sys.argv[2]))
print("ray" in sys.modules)
"""


def test_three_shares_one_of_them_killed_and_started_again(
    many_units: DataConfig, alone: TokenStore, tmp_path: Path
) -> None:
    """All at the same time; what is finished is not made again; the end needs no Ray, as hardly a row is missing."""
    store = tmp_path / "tokens"
    processes = [
        start(prepare_share, many_units, store, Share(0, 3)),
        start(prepare_share, many_units, store, Share(1, 3), KillAfter(2)),
        start(prepare_share, many_units, store, Share(2, 3)),
    ]
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, -signal.SIGKILL, 0]
    with pytest.raises(UserError, match="is not finished"):
        TokenStore(store)
    finished = {path.name: path.stat().st_mtime_ns for path in (store / "shards").glob("[0-9]*")}
    assert len(finished) == 8 + 2 + 8
    written = [path.stat() for path in sorted((store / "tokenizer").iterdir())]
    again = prepare_share(many_units, store, Share(1, 3))
    assert (again.units, again.of_units, again.made) == (8, UNITS, 6)
    assert again.totals["rows_in"] == again.totals["rows_out"] == 400
    assert [path.stat() for path in sorted((store / "tokenizer").iterdir())] == written, "once, by the first share"
    assert {name: (store / "shards" / name).stat().st_mtime_ns for name in finished} == finished
    (store / "units" / "00005.json").unlink()  # the end makes what is missing
    command = [sys.executable, "-c", FINISH, many_units.model_dump_json(), str(store)]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "False\n"
    assert content(store) == content(alone.folder)


def test_shares_killed_at_random_moments(many_units: DataConfig, alone: TokenStore, tmp_path: Path) -> None:
    """From the first look to the last unit; each comes again until it is through."""
    moments = random.Random(3)
    began = time.perf_counter()
    prepare_share(many_units, tmp_path, Share(0, 2))
    whole = time.perf_counter() - began
    killed = 0
    while killed < 8:
        shares = [start(prepare_share, many_units, tmp_path, Share(number, 2)) for number in range(2)]
        for share in shares:
            share.join(whole * moments.random())
            killed += share.exitcode is None
            share.kill()
            share.join()
    for number in range(2):
        prepare_share(many_units, tmp_path, Share(number, 2))
    prepare(many_units, tmp_path)
    assert content(tmp_path) == content(alone.folder)


def test_other_settings_are_refused_and_clear_nothing_away(many_units: DataConfig, tmp_path: Path) -> None:
    """Whether the others are at work, were killed, or are done."""
    other = many_units.model_copy(update={"template_date": date(2030, 1, 1), "train_on": "all"})
    said = (
        rf"^the unfinished token store {tmp_path} is made with other settings \(data\.template_date: 2025-01-01 -> "
        r"2030-01-01, data\.train_on: assistant -> all\); give all shares the same, or give another name=NAME or "
        r"data\.store=FOLDER, or delete it$"
    )
    refused: list[str] = []

    def meanwhile(record: UnitRecord, rows: int) -> None:
        if not refused:
            with pytest.raises(UserError, match=said) as error:
                prepare_share(other, tmp_path, Share(1, 2))
            refused.append(str(error.value))

    prepare_share(many_units, tmp_path, Share(0, 2), meanwhile)
    before = content(tmp_path)
    with pytest.raises(UserError, match=said):
        prepare_share(other, tmp_path, Share(0, 2))
    assert content(tmp_path) == before and refused
    prepare_share(many_units, tmp_path, Share(1, 2))
    prepare(many_units, tmp_path)
    with pytest.raises(UserError, match="was made with other settings"):
        prepare_share(other, tmp_path, Share(1, 2))
    done = prepare_share(many_units, tmp_path, Share(1, 2))
    assert done == MadeShare(UNITS // 2, UNITS, made=0, totals={}, finished=True)


def test_of_shares_that_begin_at_once_with_different_settings_one_kind_goes_on(
    many_units: DataConfig, tmp_path: Path
) -> None:
    dates = [date(2030, 1, 1 + number % 2) for number in range(4)]
    configs = [many_units.model_copy(update={"template_date": each}) for each in dates]
    processes = [start(prepare_share, each, tmp_path, Share(n, 4)) for n, each in enumerate(configs)]
    for process in processes:
        process.join()
    codes = [process.exitcode for process in processes]
    assert codes in ([0, 1, 0, 1], [1, 0, 1, 0])
    winner = codes.index(0)
    noted = json.loads((tmp_path / "units" / "settings.json").read_text(encoding="utf-8"))
    assert noted["settings"]["template_date"] == dates[winner].isoformat()
    assert len(list((tmp_path / "units").glob("[0-9]*.json"))) == UNITS // 2


def test_settings_that_are_damaged_tell_nobody_anything(many_units: DataConfig, tmp_path: Path) -> None:
    """A machine that went down while the first share wrote them."""
    prepare_share(many_units, tmp_path, Share(0, 24))
    (tmp_path / "units" / "settings.json").write_text('{"asked": {')
    assert prepare_share(many_units, tmp_path, Share(0, 24)).made == 0
    assert prepare_share(many_units, tmp_path, Share(1, 24)).made == 1


def test_nobody_finishes_while_a_share_runs(many_units: DataConfig, tmp_path: Path) -> None:
    """And no share begins while someone finishes; several shares do not mind each other."""
    waiting = Wait()
    share = start(prepare_share, many_units, tmp_path, Share(0, 24), waiting)
    waiting.ready.wait()
    with pytest.raises(UserError, match=r"^[^\n]* is being prepared by another process; wait for it, or [^\n]*$"):
        prepare(many_units, tmp_path)
    assert prepare_share(many_units, tmp_path, Share(1, 24)).made == 1
    waiting.go_on.set()
    share.join()
    assert share.exitcode == 0
    with locked(tmp_path), pytest.raises(UserError, match="finished by a process without --share; wait for it"):
        prepare_share(many_units, tmp_path, Share(2, 24))
    with shared(tmp_path), shared(tmp_path):
        pass


def test_a_folder_that_cannot_be_locked_is_one_line(many_units: DataConfig, tmp_path: Path) -> None:
    (tmp_path / LOCK).mkdir()
    with pytest.raises(UserError, match=r"^data\.store: cannot lock .*/\.lock: Is a directory; choose a folder"):
        prepare(many_units, tmp_path)


def test_what_a_share_left_that_was_killed_while_it_placed_the_tokenizer_goes(
    many_units: DataConfig, alone: TokenStore, tmp_path: Path
) -> None:
    prepare_share(many_units, tmp_path, Share(0, 2))
    (tmp_path / ".tokenizer.x.tmp" / "tokenizer").mkdir(parents=True)
    (tmp_path / ".tokenizer.x.tmp" / "tokenizer" / "tokenizer.json").write_text("{")
    (tmp_path / "tokenizer" / "added_tokens.json").write_text("{}")
    prepare_share(many_units, tmp_path, Share(1, 2))
    assert not (tmp_path / "tokenizer" / "added_tokens.json").exists()
    prepare(many_units, tmp_path)
    assert content(tmp_path) == content(alone.folder)


def test_rejects_of_a_share_count_as_part_of_the_whole(tmp_path: Path) -> None:
    """A share stops when its own are too many for all of the input; of what all have together the end tells."""
    source = with_rejects(tmp_path)
    values = {"sources": [{"path": str(source)}], "tokenizer": {"vocab_size": 400}, "rows_per_shard": 10}
    rejected = prepare(DataConfig.model_validate({**values, "max_reject_fraction": 1}), tmp_path / "whole").manifest[
        "totals"
    ]["rejected"]
    totals = [
        prepare_share(
            DataConfig.model_validate({**values, "max_reject_fraction": 1}), tmp_path / "s", Share(n, 2)
        ).totals
        for n in range(2)
    ]
    assert sum(each["rejected"] for each in totals) == rejected
    most = max(each["rejected"] for each in totals)
    assert 0 < most < rejected
    rows = sum(each["rows_in"] for each in totals)
    strict = DataConfig.model_validate({**values, "max_reject_fraction": (most - 1) / rows})
    number = [each["rejected"] for each in totals].index(most)
    with pytest.raises(UserError, match=f"{most} of {rows} rows are rejected, more than data.max_reject_fraction"):
        prepare_share(strict, tmp_path / "strict", Share(number, 2))
    enough = DataConfig.model_validate({**values, "max_reject_fraction": most / rows})
    for n in range(2):
        prepare_share(enough, tmp_path / "enough", Share(n, 2))
    with pytest.raises(UserError, match=f"of {rows} rows are rejected"):
        prepare(enough, tmp_path / "enough")


def test_more_shares_than_units(many_units: DataConfig, tmp_path: Path) -> None:
    assert prepare_share(many_units, tmp_path, Share(30, 40)).made == 0
    assert prepare_share(many_units, tmp_path, Share(23, 40)).made == 1


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """A bucket `shares`."""
    with serving_s3("shares") as address:
        yield address


SHARE = """
import sys
from data_tools.config import DataConfig
from data_tools.mirror import local_folder
from data_tools.share import Share, prepare_share
prepare_share(DataConfig.model_validate_json(sys.argv[1]), local_folder(sys.argv[2]), Share(int(sys.argv[3]), 2))
"""


def test_shares_of_a_store_in_an_object_store(
    s3: str, many_units: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two machines at once, each with a copy of its own, and a third that finishes."""
    uri, few = "s3://shares/shared", many_units.model_copy(update={"rows_per_shard": 200})
    alone = prepare(few, tmp_path / "alone")
    processes = []
    for number in range(2):
        environment = {**os.environ, "SHARDTUNE_CACHE": str(tmp_path / f"machine-{number}")}
        command = [sys.executable, "-c", SHARE, few.model_dump_json(), uri, str(number)]
        processes.append(subprocess.Popen(command, env=environment))
    assert [process.wait() for process in processes] == [0, 0]
    monkeypatch.setenv("SHARDTUNE_CACHE", str(tmp_path / "machine-2"))
    other = few.model_copy(update={"train_on": "all"})
    with pytest.raises(UserError, match=f"token store {uri} is made with other settings .data.train_on"):
        prepare_share(other, local_folder(uri), Share(0, 2))
    system = fsspec.filesystem("s3")
    system.rm("shares/shared/shards/00003.arrow")  # its record does not vouch for it
    made: list[int] = []
    prepare(few, local_folder(uri), lambda record, rows: made.append(record.unit))
    system.invalidate_cache()
    objects = {key.removeprefix("shares/shared/"): system.cat_file(key) for key in system.find("shares/shared")}
    assert objects == content(alone.folder)


def test_of_shares_on_several_machines_one_notes_the_settings(
    s3: str, many_units: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No lock reaches from one to the other: the object store itself takes only the first."""
    mirrors = []
    for number in range(4):
        monkeypatch.setenv("SHARDTUNE_CACHE", str(tmp_path / f"machine-{number}"))
        mirrors.append(Mirror(local_folder("s3://shares/agreed")))
    empty = {"asked": {}, "settings": {"format_version": 0}}
    refused: list[int] = []
    barrier = threading.Barrier(4)

    def begin(number: int) -> None:
        barrier.wait()
        try:
            join(mirrors[number], {**empty, "settings": {"format_version": number}})
        except UserError:
            refused.append(number)

    threads = [threading.Thread(target=begin, args=[number]) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(refused) == 3
    monkeypatch.setenv("SHARDTUNE_CACHE", str(tmp_path / "machine-4"))

    def cleared(record: UnitRecord, rows: int) -> None:
        fsspec.filesystem("s3").rm("shares/other/units/settings.json")

    with pytest.raises(UserError, match="s3://shares/other was finished or cleared away meanwhile"):
        prepare_share(many_units, local_folder("s3://shares/other"), Share(0, 2), cleared)


RECIPE = "name: shared\nruns: {folder}/runs\ndata: {{sources: [{{path: {chats}}}], tokenizer: {{vocab_size: 400}}}}\n"


def test_the_command(chat_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "shared.yaml"
    recipe.write_text(RECIPE.format(folder=tmp_path, chats=chat_file), encoding="utf-8")

    def run(*arguments: str) -> dict[str, Any]:
        assert main(["prepare", str(recipe), "data.rows_per_shard=64", *arguments, "--json"]) == 0
        facts: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert facts.pop("seconds") >= 0
        return facts

    first = run("--share", "0/3")
    assert first.pop("tokens") > first.pop("trained_tokens") > 0
    store = str(tmp_path / "runs" / "shared" / "tokens")
    assert first == {
        "store": store,
        "finished": False,
        "share": "0/3",
        "units": 2,
        "units_made": 2,
        "units_of_store": 4,
        "rows_in": 72,
        "rows_out": 72,
        "rejected": 0,
        "dropped": 0,
        "rewritten": 0,
        "documents": 72,
    }
    assert run("--share", "0/3")["units_made"] == 0
    assert main(["prepare", str(recipe), "data.rows_per_shard=64", "--share", "1/3"]) == 0
    said = capsys.readouterr().out
    assert "share 1/3: 1 of its 1 units made now (4 in all), 64 of 64 rows, " in said
    assert "when all shares are done, `shardtune prepare` without --share finishes the store" in said
    assert run()["rows_in"] == 200
    assert run("--share", "2/3") == {
        "store": store,
        "finished": True,
        "share": "2/3",
        "units": 1,
        "units_made": 0,
        "units_of_store": 4,
    }


@pytest.mark.parametrize("share", ["3/3", "x", "0/0", "1", "/", "-1/3", "1/3/5", "0/3.0", ""])
def test_a_share_that_is_none_is_one_line(share: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prepare", str(tmp_path / "run.yaml"), f"--share={share}"]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert f"'{share}' is no share I/N with I from 0 to N - 1, for example 0/4" in line
