"""The store: the same bytes whoever makes it, whatever interrupts it; every row accounted for."""

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_tools.chat import Learning
from data_tools.claim import locked
from data_tools.config import DataConfig
from data_tools.documents import DocumentMaker, Making
from data_tools.errors import UserError
from data_tools.mirror import open_store
from data_tools.piece_models import save_tokenizer
from data_tools.prepare import prepare
from data_tools.records import UnitRecord
from data_tools.sources import resolve_sources
from data_tools.store import TokenStore, atomically, folder_digests
from data_tools.tokenizer import CHATML, load_tokenizer
from data_tools.units import work_units
from tests.conftest import chats, write_jsonl


def config(path: Path, **changes: Any) -> DataConfig:
    values = {"sources": [{"path": str(path)}], "tokenizer": {"vocab_size": 400}, "rows_per_shard": 64, **changes}
    return DataConfig.model_validate(values)


def content(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


def test_a_store_holds_every_document_with_its_mask(store: TokenStore) -> None:
    totals = store.manifest["totals"]
    assert totals["rows_in"] == totals["rows_out"] == len(store) == 200
    lengths, trained = [], []
    for number in range(len(store)):
        document = store.document(number)
        ids, runs = document.input_ids, document.mask_runs
        assert runs.sum() == len(ids)
        lengths.append(len(ids))
        trained.append(int(runs[1::2].sum()))
    assert store.index["length"].tolist() == lengths
    assert store.index["trained"].tolist() == trained
    assert (sum(lengths), sum(trained)) == (totals["tokens"], totals["trained_tokens"])
    assert store.document(0).input_ids.dtype == np.uint16
    assert len(store.manifest["shards"]) == 4
    store.verify()


def test_actors_write_the_same_bytes_as_one_process(tmp_path: Path) -> None:
    few = config(with_rejects(tmp_path), max_reject_fraction=0.5, rows_per_shard=16)
    alone = prepare(few, tmp_path / "alone")
    prepare(few.model_copy(update={"actors": 2}), tmp_path / "actors")
    assert content(tmp_path / "actors") == content(alone.folder)


def test_a_killed_preparation_goes_on_and_ends_with_the_same_bytes(
    store: TokenStore, data_config: DataConfig, tmp_path: Path
) -> None:
    """SIGKILL after the second shard: no manifest, nothing taken for complete; the next run does only the rest."""
    script = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from data_tools.config import DataConfig\n"
        "from data_tools.prepare import prepare\n"
        "def stop(record, rows):\n"
        "    if record.unit == 1: os.kill(os.getpid(), signal.SIGKILL)\n"
        "prepare(DataConfig.model_validate_json(sys.argv[1]), Path(sys.argv[2]), stop)\n"
    )
    command = [sys.executable, "-c", script, data_config.model_dump_json(), str(tmp_path)]
    root = Path(__file__).parent.parent.parent
    killed = subprocess.run(command, check=False, env={**os.environ, "PYTHONPATH": str(root)})
    assert killed.returncode == -signal.SIGKILL
    with pytest.raises(UserError, match="is not finished; run `shardtune prepare`"):
        TokenStore(tmp_path)
    kept = (tmp_path / "shards" / "00000.arrow").stat().st_mtime_ns
    prepare(data_config, tmp_path)
    assert (tmp_path / "shards" / "00000.arrow").stat().st_mtime_ns == kept
    assert content(tmp_path) == content(store.folder)


def test_a_finished_store_is_only_opened(store: TokenStore, data_config: DataConfig) -> None:
    before = content(store.folder)
    assert prepare(data_config, store.folder).fingerprint == store.fingerprint
    assert content(store.folder) == before


def test_who_was_killed_after_the_manifest_leaves_no_units(
    store: TokenStore, data_config: DataConfig, tmp_path: Path
) -> None:
    shutil.copytree(store.folder, tmp_path / "tokens")
    (tmp_path / "tokens" / "units").mkdir()
    (tmp_path / "tokens" / "units" / "00003.json").write_text("{}")
    prepare(data_config, tmp_path / "tokens")
    assert content(tmp_path / "tokens") == content(store.folder)


def test_a_copy_without_hidden_files_is_a_store(store: TokenStore, data_config: DataConfig, tmp_path: Path) -> None:
    shutil.copytree(store.folder, tmp_path / "copy", ignore=shutil.ignore_patterns(".*"))
    assert prepare(data_config, tmp_path / "copy").fingerprint == store.fingerprint


def test_a_store_with_other_settings_is_not_touched(store: TokenStore, data_config: DataConfig) -> None:
    before = content(store.folder)
    with pytest.raises(UserError, match=r"other settings \(data.template_date: 2025-01-01 -> 2030-01-01\)"):
        prepare(data_config.model_copy(update={"template_date": date(2030, 1, 1)}), store.folder)
    assert content(store.folder) == before


def _killed_while_writing(path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    with atomically(path) as temporary:
        temporary.write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("finished", [False, True])
def test_half_written_files_do_not_stay(
    finished: bool, data_config: DataConfig, store: TokenStore, tmp_path: Path
) -> None:
    """SIGKILL while a file is written, of an unfinished store and of one whose manifest is written anew."""
    if finished:
        shutil.copytree(store.folder, tmp_path, dirs_exist_ok=True)
    else:
        with pytest.raises(KeyboardInterrupt):
            prepare(data_config, tmp_path, _interrupt)
    for name in ("manifest.json", "index.arrow", "sample/python_docs.jsonl", "shards/00001.arrow"):
        killed = multiprocessing.get_context("fork").Process(target=_killed_while_writing, args=[tmp_path / name])
        killed.start()
        killed.join()
    assert len(list(tmp_path.rglob(".*.tmp"))) == 4
    prepare(data_config, tmp_path)
    assert content(tmp_path) == content(store.folder)


def test_a_store_of_another_format_says_what_to_do(store: TokenStore, data_config: DataConfig, tmp_path: Path) -> None:
    shutil.copytree(store.folder, tmp_path, dirs_exist_ok=True)
    manifest = {**store.manifest, "format_version": 1}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    for look in (partial(prepare, data_config), open_store):
        with pytest.raises(UserError, match=r"has format 1, .* reads \d+; keep it and give another") as error:
            look(tmp_path)
        assert str(error.value).endswith("name=NAME or data.store=FOLDER, or delete it; then run `shardtune prepare`")


@pytest.mark.parametrize("harm", ["", "{", "{}", "[]", "null", '"x"', "digit", "byte"])
def test_a_manifest_that_is_damaged_in_any_way_is_one_line(
    harm: str, store: TokenStore, data_config: DataConfig, tmp_path: Path
) -> None:
    shutil.copytree(store.folder, tmp_path, dirs_exist_ok=True)
    whole = (tmp_path / "manifest.json").read_bytes()
    damaged = {"digit": whole.replace(b'"documents": 64', b'"documents": 65', 1), "byte": b"\xff" + whole[1:]}
    (tmp_path / "manifest.json").write_bytes(damaged.get(harm, harm.encode()))
    for look in (partial(prepare, data_config), open_store):
        with pytest.raises(UserError, match=r"manifest\.json is damaged; copy it again, or delete "):
            look(tmp_path)


def test_leftovers_of_other_settings_are_not_used(data_config: DataConfig, store: TokenStore, tmp_path: Path) -> None:
    """Finished units of a preparation with another date, killed before its manifest: all are made again."""
    other = data_config.model_copy(update={"template_date": date(2030, 1, 1)})
    with pytest.raises(KeyboardInterrupt):
        prepare(other, tmp_path, _interrupt)
    assert len(list((tmp_path / "units").glob("[0-9]*.json"))) == 1
    (tmp_path / "shards" / "00000.arrow").write_bytes(b"of other settings")
    prepare(data_config, tmp_path)
    assert content(tmp_path) == content(store.folder)


def test_finished_units_that_are_made_again_are_told_with_the_reason(
    data_config: DataConfig, chat_file: Path, tmp_path: Path
) -> None:
    told: list[str | None] = []

    def again(unit: int, **changes: Any) -> str | None:
        """What is told at the start of a preparation that is interrupted after a unit."""
        with pytest.raises(KeyboardInterrupt):
            changed = data_config.model_copy(update=changes)
            prepare(changed, tmp_path, interrupted_after(unit), on_start=lambda left: told.append(left.told))
        return told.pop()

    assert again(1) is None
    assert again(1) is None, "the same settings keep them"
    (tmp_path / "units" / "00001.json").write_text("{}")
    assert again(2) == (
        "1 finished unit of an earlier preparation is made again: it is damaged, or another version of shardtune cut "
        "the files elsewhere"
    )
    two = "finished units of an earlier preparation are made again: "
    assert again(1, template_date=date(2030, 1, 1), train_on="all") == (
        f"3 {two}data.template_date: 2025-01-01 -> 2030-01-01, data.train_on: assistant -> all"
    )
    assert again(0) == f"2 {two}data.template_date: 2030-01-01 -> 2025-01-01, data.train_on: all -> assistant"
    (tmp_path / "units" / "settings.json").write_text("{")
    assert again(0, train_headers=True) == (
        "1 finished unit of an earlier preparation is made again: its settings are not known any more"
    )


def test_units_are_not_thrown_away_by_a_preparation_that_cannot_begin(data_config: DataConfig, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        prepare(data_config, tmp_path, interrupted_after(1))
    (tmp_path / "broken.jinja").write_text("{% if %}")
    with pytest.raises(UserError):
        prepare(data_config.model_copy(update={"chat_template": str(tmp_path / "broken.jinja")}), tmp_path)
    kept: list[set[int]] = []
    prepare(data_config, tmp_path, on_start=lambda left: kept.append(left.kept))
    assert kept == [{0, 1}]


def test_files_of_an_earlier_tokenizer_do_not_stay(data_config: DataConfig, store: TokenStore, tmp_path: Path) -> None:
    """`added_tokens.json`, say, would change what `AutoTokenizer` loads."""
    with pytest.raises(KeyboardInterrupt):
        prepare(data_config, tmp_path, _interrupt)
    (tmp_path / "tokenizer" / "added_tokens.json").write_text("{}")
    prepare(data_config, tmp_path)
    assert content(tmp_path) == content(store.folder)


def test_units_of_another_cut_are_made_again(chat_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another version of the code may cut files elsewhere, into more units; the settings are the same."""
    first = write_jsonl(tmp_path / "first.jsonl", chats(20))
    two = config(first, sources=[{"path": str(first)}, {"path": str(chat_file)}], rows_per_shard=None)
    whole = prepare(two, tmp_path / "whole")
    assert len(whole.manifest["shards"]) == 2

    def interrupt(record: UnitRecord, rows: int) -> None:
        if record.unit == 4:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("data_tools.units.MOST_ROWS", 32)
        prepare(two, tmp_path / "again", interrupt)
    shards = tmp_path / "again" / "shards"
    assert len(list(shards.iterdir())) == 5
    kept = (shards / "00000.arrow").stat().st_mtime_ns
    prepare(two, tmp_path / "again")
    assert (shards / "00000.arrow").stat().st_mtime_ns == kept
    assert content(tmp_path / "again") == content(whole.folder)


def _interrupt(record: UnitRecord, rows: int) -> None:
    raise KeyboardInterrupt


def test_a_folder_that_is_no_store_is_not_touched(data_config: DataConfig, tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "mine.txt").write_text("precious")
    with pytest.raises(UserError, match="is not empty and no token store"):
        prepare(data_config, tmp_path)
    assert (tmp_path / "shards" / "mine.txt").read_text() == "precious"
    with pytest.raises(UserError, match=r"cannot use .*mine\.txt"):
        prepare(data_config, tmp_path / "shards" / "mine.txt")


def test_control_tokens_are_part_of_the_fingerprint(store: TokenStore, chat_file: Path, tmp_path: Path) -> None:
    """The template sees `eos_token`: another one gives other tokens, so it must give another store."""
    shutil.copytree(store.folder / "tokenizer", tmp_path / "tokenizer")
    (tmp_path / "template.jinja").write_text(CHATML.replace("'<|im_end|>'", "eos_token"), encoding="utf-8")
    other = config(chat_file, tokenizer=str(tmp_path / "tokenizer"), chat_template=str(tmp_path / "template.jinja"))
    first = prepare(other, tmp_path / "first")
    settings = tmp_path / "tokenizer" / "tokenizer_config.json"
    values = json.loads(settings.read_text(encoding="utf-8"))
    settings.write_text(json.dumps(values | {"eos_token": "<|endoftext|>"}), encoding="utf-8")
    with pytest.raises(UserError, match=r"the tokenizer's eos_token: <\|im_end\|> -> <\|endoftext\|>"):
        prepare(other, tmp_path / "first")
    second = prepare(other, tmp_path / "second")
    assert first.document(0).input_ids.tolist() != second.document(0).input_ids.tolist()


def test_every_row_is_in_the_store_or_in_the_rejects(tmp_path: Path) -> None:
    rows: list[Any] = chats(10)
    rows[2] = {"messages": [{"role": "user", "content": "No answer?"}]}
    rows[5] = {"prompt": "What?"}
    file = write_jsonl(tmp_path / "chats.jsonl", rows)
    with open(file, "a", encoding="utf-8") as lines:
        lines.write('{"messages": [\n')
    finished = prepare(config(file, max_reject_fraction=0.5), tmp_path / "tokens")
    totals = finished.manifest["totals"]
    assert (totals["rows_in"], totals["rows_out"], totals["rejected"], totals["dropped"]) == (11, 8, 3, 0)
    rejects = [json.loads(line) for line in (tmp_path / "tokens" / "rejects.jsonl").read_text().splitlines()]
    assert [(reject["file"], reject["row"]) for reject in rejects] == [(str(file), 2), (str(file), 5), (str(file), 10)]
    assert [reject["reason"][:18] for reject in rejects] == [
        "no assistant turn:",
        "no `messages` colu",
        "not JSON: Expectin",
    ]
    with pytest.raises(UserError, match=r"3 of 11 rows rejected, more than data\.max_reject_fraction=0\.2"):
        prepare(config(file, max_reject_fraction=0.2), tmp_path / "tokens")


def with_rejects(folder: Path, count: int = 60) -> Path:
    """Every third row is rejected."""
    rows: list[Any] = chats(count)
    rows[::3] = [{"messages": [{"role": "user", "content": f"No answer {n}?"}]} for n in range(0, count, 3)]
    return write_jsonl(folder / "chats.jsonl", rows)


def test_rejects_survive_a_kill(tmp_path: Path) -> None:
    """Those of finished units are kept, and what is half done is not taken for them."""
    few = config(with_rejects(tmp_path), max_reject_fraction=0.5, rows_per_shard=8)
    alone = prepare(few, tmp_path / "alone")
    rejects = [json.loads(line) for line in (alone.folder / "rejects.jsonl").read_text().splitlines()]
    assert [reject["row"] for reject in rejects] == list(range(0, 60, 3))

    def killed(record: UnitRecord, rows: int) -> None:
        if record.unit == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(few, tmp_path / "killed", killed)
    units = tmp_path / "killed" / "units"
    assert len(list(units.glob("*.rejects.jsonl"))) == 4
    (units / "00002.rejects.jsonl").unlink()
    (units / "00005.rejects.jsonl").write_text("of an earlier attempt")
    prepare(few, tmp_path / "killed")
    assert content(tmp_path / "killed") == content(alone.folder)


def test_records_do_not_grow_with_rejects(tmp_path: Path) -> None:
    """Whether two rows or two thousand are refused: the record of the unit has their number."""
    sizes = []
    for count in (6, 6000):
        file = write_jsonl(tmp_path / f"{count}.jsonl", [*chats(4), *[{"messages": [1]}] * count])
        with pytest.raises(KeyboardInterrupt):
            prepare(config(file, max_reject_fraction=1, rows_per_shard=9999), tmp_path / f"{count}", _interrupt)
        (record,) = (tmp_path / f"{count}" / "units").glob("[0-9]*.json")
        assert json.loads(record.read_text())["rejected"] == count
        sizes.append(record.stat().st_size)
    assert sizes[1] - sizes[0] < 20


def test_too_many_rejects_leave_their_reasons(tmp_path: Path) -> None:
    file = with_rejects(tmp_path)
    folder = tmp_path / "tokens"
    with pytest.raises(UserError) as error:
        prepare(config(file, rows_per_shard=8), folder)
    assert str(error.value).startswith(
        "6 of 60 rows are rejected, more than data.max_reject_fraction=0.05 allows: 6 × no assistant turn: "
    )
    assert str(error.value).endswith(f" (row 0 of {file}); all that were found until then: {folder / 'rejects.jsonl'}")
    assert [json.loads(line)["row"] for line in (folder / "rejects.jsonl").read_text().splitlines()] == [
        *range(0, 16, 3)
    ]


def test_a_trained_tokenizer_takes_the_template_that_is_given(chat_file: Path, tmp_path: Path) -> None:
    (tmp_path / "other.jinja").write_text(CHATML.replace("<|im_start|>", "<|endoftext|>"), encoding="utf-8")
    finished = prepare(config(chat_file, chat_template=str(tmp_path / "other.jinja")), tmp_path / "tokens")
    assert finished.document(0).input_ids[0] == 0  # <|endoftext|>


def test_no_document_at_all_is_an_error_with_the_reasons(tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "chats.jsonl", [{"messages": [{"role": "user", "content": "?"}]}] * 3)
    with pytest.raises(UserError, match="no row became a document; 3 × no assistant turn"):
        prepare(config(file, max_reject_fraction=1), tmp_path / "tokens")
    assert not (tmp_path / "tokens" / "manifest.json").exists()


@pytest.mark.parametrize("name", ["shards/00001.arrow", "index.arrow"])
def test_a_changed_byte_is_found(store: TokenStore, tmp_path: Path, name: str) -> None:
    shutil.copytree(store.folder, tmp_path, dirs_exist_ok=True)
    data = bytearray((tmp_path / name).read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=rf"{name} is not what was written"):
        TokenStore(tmp_path).verify()


@pytest.mark.parametrize("change", ["missing", "changed", "added"])
def test_a_tokenizer_that_is_another_is_found(store: TokenStore, tmp_path: Path, change: str) -> None:
    """Its files decide what an export will make of a text."""
    shutil.copytree(store.folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / "tokenizer" / ".nfs0001").write_text("of a file system")
    open_store(tmp_path)
    name = "added_tokens.json" if change == "added" else "tokenizer_config.json"
    path = tmp_path / "tokenizer" / name
    if change == "missing":
        path.unlink()
    else:
        path.write_text('{"<|new|>": 7}')
    for look in (lambda: open_store(tmp_path), TokenStore(tmp_path).verify):
        with pytest.raises(UserError, match=rf"{name} is not what was written; delete"):
            look()


def test_a_disk_that_is_full_is_one_line(tmp_path: Path) -> None:
    with (
        pytest.raises(UserError, match=r"cannot write .*file: No space left on device; make room"),
        atomically(tmp_path / "file"),
        open("/dev/full", "wb", buffering=0) as full,
    ):
        full.write(b"one byte")
    assert not list(tmp_path.iterdir())


def test_a_disk_that_is_full_when_the_tokenizer_is_written_is_one_line(store: TokenStore, tmp_path: Path) -> None:
    """The tokenizers library raises an Exception and nothing else then."""
    (tmp_path / "tokenizer.json").symlink_to("/dev/full")
    with pytest.raises(UserError, match=r"cannot write .*: No space left on device.*; make room"):
        save_tokenizer(load_tokenizer(str(store.folder / "tokenizer")), tmp_path)


HASHING = """
import resource, sys
from pathlib import Path
from data_tools.store import file_digest
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
file_digest(Path(sys.argv[1]))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_a_large_source_is_not_in_memory_when_it_is_hashed(tmp_path: Path) -> None:
    large = tmp_path / "large.jsonl"
    with open(large, "wb") as file:
        file.truncate(2**28)
    root = Path(__file__).parent.parent.parent
    command = [sys.executable, "-c", HASHING, str(large)]
    done = subprocess.run(command, capture_output=True, check=True, env={**os.environ, "PYTHONPATH": str(root)})
    assert int(done.stdout) < 2**16, "kilobytes"


def test_two_preparations_of_one_store_do_not_meet(data_config: DataConfig, tmp_path: Path) -> None:
    with locked(tmp_path), pytest.raises(UserError, match="being prepared by another process"):
        prepare(data_config, tmp_path)


def test_a_unit_is_a_pure_function_of_its_rows(store: TokenStore, data_config: DataConfig, tmp_path: Path) -> None:
    """Made last instead of first, by a maker that made others before: the same shard."""
    units = work_units(resolve_sources(data_config.sources, tmp_path), 64)
    shutil.copytree(store.folder / "tokenizer", tmp_path / "tokenizer")
    (tmp_path / "shards").mkdir()
    (tmp_path / "units").mkdir()
    sources = tuple(source.model_copy(update={"format": "messages"}) for source in data_config.sources)
    engine = store.manifest["encoder"]
    tokenizer = folder_digests(tmp_path / "tokenizer")
    making = Making(
        str(tmp_path), store.fingerprint, tokenizer, data_config.template_date, Learning(), sources, engine, 1
    )
    maker = DocumentMaker(making)
    for unit in reversed(units):
        maker.make_shard(unit)
    for shard in store.manifest["shards"]:
        assert (tmp_path / shard["file"]).read_bytes() == (store.folder / shard["file"]).read_bytes()


def test_a_cluster_that_does_not_answer_is_named(
    data_config: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(UserError, match=r"no Ray cluster answers at RAY_ADDRESS=127\.0\.0\.1:1"):
        prepare(data_config.model_copy(update={"actors": 2}), tmp_path)


def test_a_first_row_with_a_hole_is_one_reject(tmp_path: Path) -> None:
    rows = [{"q": None, "a": "x"}, *({"q": f"Why {n}?", "a": f"So {n}."} for n in range(30))]
    file = write_jsonl(tmp_path / "qa.jsonl", rows)
    source = {"path": str(file), "columns": {"user": "{q}", "assistant": "{a}"}}
    finished = prepare(config(file, sources=[source, source]), tmp_path / "tokens")
    assert [(s["name"], s["rows_out"], s["rejected"]) for s in finished.manifest["sources"]] == [
        ("qa", 30, 1),
        ("qa-2", 30, 1),
    ]


def test_the_same_tokens_asked_for_in_other_words_are_the_same_store(
    store: TokenStore, data_config: DataConfig, tmp_path: Path
) -> None:
    shutil.copytree(store.folder, tmp_path, dirs_exist_ok=True)
    named = data_config.sources[0].model_copy(update={"format": "messages"})
    other = data_config.model_copy(update={"sources": [named]})
    opened = prepare(other, tmp_path)
    assert opened.manifest["asked"] == other.asked() != store.manifest["asked"]
    assert opened.fingerprint == store.fingerprint


def interrupted_after(unit: int) -> Callable[[UnitRecord, int], None]:
    def interrupt(record: UnitRecord, rows: int) -> None:
        if record.unit == unit:
            raise KeyboardInterrupt

    return interrupt


def flip(path: Path) -> None:
    """One bit of a file, in its middle."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("name", ["shards/00001.arrow", "units/00001.arrow", "units/00001.rejects.jsonl"])
def test_a_changed_byte_in_a_finished_unit_makes_it_again(name: str, tmp_path: Path) -> None:
    few = config(with_rejects(tmp_path), max_reject_fraction=0.5, rows_per_shard=16)
    alone = prepare(few, tmp_path / "alone")
    with pytest.raises(KeyboardInterrupt):
        prepare(few, tmp_path / "tokens", interrupted_after(2))
    flip(tmp_path / "tokens" / name)
    prepare(few, tmp_path / "tokens")
    assert content(tmp_path / "tokens") == content(alone.folder)


@pytest.mark.parametrize("name", ["units/00001.arrow", "units/00001.rejects.jsonl"])
def test_a_byte_that_changes_before_units_are_joined_is_noticed(name: str, tmp_path: Path) -> None:
    few = config(with_rejects(tmp_path), max_reject_fraction=0.5, rows_per_shard=16)

    def harm(record: UnitRecord, rows: int) -> None:
        if record.unit == 3:
            flip(tmp_path / "tokens" / name)

    with pytest.raises(UserError, match=rf"tokens/{name} is not what was written; run the same command again"):
        prepare(few, tmp_path / "tokens", harm)
    assert not (tmp_path / "tokens" / "manifest.json").exists()
    prepare(few, tmp_path / "tokens").verify()
    assert content(tmp_path / "tokens") == content(prepare(few, tmp_path / "alone").folder)


@pytest.mark.parametrize("harm", ["{}", "[]", "null", "3", '{"hash": 1}', "half", "bit", "bytes"])
def test_a_record_that_is_damaged_in_any_way_makes_its_unit_again(
    harm: str, data_config: DataConfig, store: TokenStore, tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        prepare(data_config, tmp_path, interrupted_after(2))
    record = tmp_path / "units" / "00001.json"
    whole = record.read_bytes()
    digit = whole.index(b'"tokens": ') + len(b'"tokens": ')
    damaged = {"half": whole[: len(whole) // 2], "bytes": b"\xff\xfe"}
    damaged["bit"] = whole[:digit] + bytes([whole[digit] ^ 1]) + whole[digit + 1 :]
    record.write_bytes(damaged.get(harm, harm.encode()))
    prepare(data_config, tmp_path)
    assert content(tmp_path) == content(store.folder)


def test_a_record_does_not_vouch_for_a_shard_that_is_gone(chat_file: Path, tmp_path: Path) -> None:
    def interrupt(record: UnitRecord, rows: int) -> None:
        if record.unit == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(config(chat_file), tmp_path, interrupt)
    (tmp_path / "shards" / "00001.arrow").unlink()
    (tmp_path / "units" / "00000.json").write_text("{")
    prepare(config(chat_file), tmp_path).verify()
