"""Sources in an object store: the real s3fs client against a server on loopback that speaks S3."""

import gzip
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_tools.chat import Learning
from data_tools.config import DataConfig, SourceConfig, TokenizerTraining
from data_tools.documents import DocumentMaker, Making
from data_tools.errors import UserError
from data_tools.files import content_digest
from data_tools.mirror import Mirror, local_folder, open_store
from data_tools.prepare import prepare
from data_tools.readers import read_rows
from data_tools.records import UnitRecord
from data_tools.rejects import REJECTS, reject_reasons
from data_tools.sources import resolve_sources
from data_tools.store import TokenStore, file_digest, folder_digests
from data_tools.units import work_units
from tests.conftest import chats
from tests.data_tools.test_prepare import content
from tests.object_store import serving_s3

ROWS = chats(50)
LINES = b"".join(json.dumps(row).encode() + b"\n" for row in ROWS)


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """The address of a server with a bucket of chats."""
    with serving_s3("chats") as address:
        system = fsspec.filesystem("s3")
        parquet = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(ROWS), parquet, row_group_size=20)
        for name, content in {
            "a.jsonl.gz": gzip.compress(LINES),
            "many/1.jsonl": LINES[: LINES.index(b"\n") + 1],
            "many/2.jsonl": LINES[LINES.index(b"\n") + 1 :],
            "a.parquet": parquet.getvalue(),
            "cut.parquet": parquet.getvalue()[:-100],
        }.items():
            system.pipe_file(f"chats/{name}", content)
        yield address


def rows(path: str, rows_per_shard: int | None = None) -> list[Any]:
    units = work_units(resolve_sources([SourceConfig(path=path)], Path()), rows_per_shard)
    return [row for unit in units for row in read_rows(unit)]


@pytest.mark.parametrize("path", ["a.jsonl.gz", "a.parquet", "many/*.jsonl"])
@pytest.mark.parametrize("rows_per_shard", [None, 7])
def test_objects_give_the_rows_of_files(s3: str, path: str, rows_per_shard: int | None) -> None:
    assert rows(f"s3://chats/{path}", rows_per_shard) == ROWS


def test_a_glob_names_its_objects_in_order(s3: str) -> None:
    (source,) = resolve_sources([SourceConfig(path="s3://chats/many/*")], Path())
    assert source.files == ("s3://chats/many/1.jsonl", "s3://chats/many/2.jsonl")


def test_the_content_of_objects_is_part_of_the_fingerprint(s3: str, tmp_path: Path) -> None:
    (tmp_path / "local").write_bytes(LINES)
    fsspec.filesystem("s3").pipe_file("chats/changing.jsonl", LINES)
    assert content_digest("s3://chats/changing.jsonl") == file_digest(tmp_path / "local")
    config = DataConfig.model_validate(
        {"sources": [{"path": "s3://chats/changing.jsonl"}], "tokenizer": {"vocab_size": 400}, "actors": 0}
    )
    store = prepare(config, tmp_path / "tokens")
    assert len(store) == 50
    assert prepare(config, tmp_path / "tokens").fingerprint == store.fingerprint
    fsspec.filesystem("s3").pipe_file("chats/changing.jsonl", LINES.replace(b"blue", b"grey"))
    with pytest.raises(UserError, match=r"other settings \(the files of the source changing, "):
        prepare(config, tmp_path / "tokens")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("s3://chats/nowhere.jsonl", "cannot read s3://chats/nowhere.jsonl: there is no such file; check the path"),
        ("s3://nobucket/a.jsonl", "cannot read s3://nobucket/a.jsonl: there is no such file; check the path"),
        ("s3://nobucket/*.jsonl", "no file matches s3://nobucket|cannot read s3://nobucket"),
        ("s3://chats/x*.jsonl", r"no file matches s3://chats/x\*.jsonl"),
        ("s3://chats/many", r"s3://chats/many is a folder; give a glob such as s3://chats/many/\*.parquet"),
        ("s3://chats/cut.parquet", "cannot read s3://chats/cut.parquet: Parquet magic bytes not found"),
        ("nothing://chats/a.jsonl", "nothing://chats/a.jsonl: Protocol not known: nothing"),
    ],
)
def test_what_is_not_there_is_one_line(s3: str, path: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        rows(path)
    assert "\n" not in str(error.value)


def test_a_store_that_refuses_or_does_not_answer_is_one_line(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = "s3://chats/a.parquet"
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")

    def refusal() -> str:
        fsspec.filesystem("s3").clear_instance_cache()
        with pytest.raises(UserError, match=f"cannot read {asked}: ") as error:
            rows(asked)
        fsspec.filesystem("s3").clear_instance_cache()
        return str(error.value)

    check_every_key(s3, True)
    assert "access is refused" in refusal()
    check_every_key(s3, False)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    assert "Could not connect to the endpoint" in refusal()
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    assert "credentials; log in to the store, or set its environment variables" in refusal()


def check_every_key(server: str, checked: bool) -> None:
    """Whether the server refuses keys that it does not know."""
    free_requests = b"0" if checked else b"inf"
    url, headers = f"{server}/moto-api/reset-auth", {"Content-Type": "text/plain"}
    urllib.request.urlopen(urllib.request.Request(url, free_requests, headers)).close()


@pytest.mark.parametrize(("uri", "client", "extra"), [("s3://a/b.csv", "s3fs", "s3"), ("gs://a/b.csv", "gcsfs", "gcs")])
def test_a_missing_client_is_named(uri: str, client: str, extra: str) -> None:
    script = (
        "import sys\n"
        "sys.modules[sys.argv[1]] = None\n"
        "from data_tools.files import find_files\n"
        "from data_tools.errors import UserError\n"
        "try:\n"
        "    find_files(sys.argv[2])\n"
        "except UserError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, client, uri], capture_output=True, text=True, check=True)
    assert f"needs another package: pip install 'shardtune[{extra}]'" in done.stdout


def test_a_store_in_an_object_store(s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Made by way of one machine's cache, gone on with and read by way of others': the objects of a plain store."""
    fsspec.filesystem("s3").pipe_file("chats/odd.jsonl", b'{"messages": [{"role": "user", "content": "?"}]}\n' * 3)
    sources = [{"path": "s3://chats/odd.jsonl"}, {"path": "s3://chats/a.jsonl.gz"}]
    values = {"sources": sources, "tokenizer": {"vocab_size": 400}, "rows_per_shard": 16, "max_reject_fraction": 0.1}
    config = DataConfig.model_validate(values)
    plain = prepare(config, tmp_path / "plain")
    monkeypatch.setenv("SHARDTUNE_CACHE", str(tmp_path / "first"))

    def killed(record: UnitRecord, rows: int) -> None:
        if record.unit == 1:
            raise KeyboardInterrupt

    told: list[str | None] = []
    for other in (config.model_copy(update={"train_on": "all"}), config):
        with pytest.raises(KeyboardInterrupt):
            store = local_folder("s3://chats/tokens")
            prepare(other, store, killed, on_start=lambda left: told.append(left.told))
    again = "2 finished units of an earlier preparation are made again: data.train_on: all -> assistant"
    assert told == [None, again]
    with pytest.raises(UserError, match=r"is not finished|does not exist"):
        open_store(local_folder("s3://chats/tokens"))
    monkeypatch.setenv("SHARDTUNE_CACHE", str(tmp_path / "second"))
    system = fsspec.filesystem("s3")
    system.pipe_file("chats/tokens/shards/00099.arrow", b"of files that were cut into more units")
    index = bytearray(system.cat_file("chats/tokens/units/00001.arrow"))
    index[len(index) // 2] ^= 1
    system.pipe_file("chats/tokens/units/00001.arrow", bytes(index))
    made: list[int] = []
    prepare(config, local_folder("s3://chats/tokens/"), lambda record, rows: made.append(record.unit))
    system.invalidate_cache()
    objects = {key.removeprefix("chats/tokens/"): system.cat_file(key) for key in system.find("chats/tokens")}
    there = {name: data for name, data in content(plain.folder).items() if not name.startswith("sample/")}
    assert objects == there
    monkeypatch.setenv("SHARDTUNE_CACHE", str(tmp_path / "third"))
    opened = open_store("s3://chats/tokens")
    assert not list(opened.folder.glob("shards/*")), "shards come down when they are read"
    assert [reason.count for reason in reject_reasons(opened.file(REJECTS))] == [3]
    assert [opened.document(n).input_ids.tolist() for n in range(50)] == [
        plain.document(n).input_ids.tolist() for n in range(50)
    ]
    opened.verify()
    changed = bytearray(objects["shards/00001.arrow"])
    changed[len(changed) // 2] ^= 1
    system.pipe_file("chats/tokens/shards/00001.arrow", bytes(changed))
    monkeypatch.setenv("SHARDTUNE_CACHE", str(tmp_path / "fourth"))
    opened = open_store("s3://chats/tokens")
    for _ in range(2):  # who comes second does not find it here
        with pytest.raises(UserError, match=r"00001\.arrow is not what was written"):
            opened.document(0)
    with pytest.raises(UserError, match=r"00001\.arrow is not what was written"):
        opened.verify()


def test_a_store_that_was_replaced(s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All files are those of the new store, whatever is left of the old one here; processes come one by one."""
    system = fsspec.filesystem("s3")
    system.pipe_file("chats/grey.jsonl", LINES.replace(b"blue", b"grey"))
    for colour in ("blue", "grey"):
        source = {"path": "s3://chats/grey.jsonl" if colour == "grey" else "s3://chats/a.jsonl.gz"}
        values = {"sources": [source], "tokenizer": {"vocab_size": 400}, "rows_per_shard": 16}
        config = DataConfig.model_validate(values)
        monkeypatch.setenv("SHARDTUNE_CACHE", str(tmp_path / colour))
        if colour == "grey":
            system.rm("chats/replaced", recursive=True)
        new = prepare(config, local_folder("s3://chats/replaced"))
        new.verify()

    def stale(name: str) -> Path:
        """A machine that still has the whole blue store."""
        shutil.copytree(tmp_path / "blue", tmp_path / name)
        monkeypatch.setenv("SHARDTUNE_CACHE", str(tmp_path / name))
        return local_folder("s3://chats/replaced")

    def check(opened: TokenStore) -> None:
        assert [opened.document(n).input_ids.tolist() for n in range(50)] == [
            new.document(n).input_ids.tolist() for n in range(50)
        ]
        assert (opened.index["digest"] == new.index["digest"]).all()
        opened.verify()

    folder = stale("waiting")
    old = (folder / "manifest.json").read_bytes()
    with Mirror(folder).locked():
        waiting = threading.Thread(target=open_store, args=[folder])
        waiting.start()
        waiting.join(0.5)
        assert waiting.is_alive(), "another process is at the copy"
        assert (folder / "manifest.json").read_bytes() == old
    waiting.join()
    check(TokenStore(folder, Mirror(folder).pull))
    folder = stale("killed")
    (folder / "manifest.json").unlink()
    check(open_store(folder))
    check(prepare(config, stale("prepared")))


def test_a_tokenizer_that_a_worker_left_here_is_not_used(
    s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Process ids come again: an earlier preparation of this store may have had a worker of the same one."""
    source = {"path": "s3://chats/a.jsonl.gz"}
    config = DataConfig.model_validate({"sources": [source], "tokenizer": {"vocab_size": 400}})
    other = config.model_copy(update={"tokenizer": TokenizerTraining(vocab_size=300)})
    plain = prepare(config, tmp_path / "plain")
    monkeypatch.setenv("SHARDTUNE_CACHE", str(tmp_path / "cache"))
    folder = local_folder("s3://chats/stale")
    left = prepare(other, tmp_path / "other").folder / "tokenizer"
    shutil.copytree(left, folder / "workers" / f"{socket.gethostname()}-{os.getpid()}" / "tokenizer")
    assert prepare(config, folder).document(0).input_ids.tolist() == plain.document(0).input_ids.tolist()


def test_a_worker_compares_the_tokenizer_that_comes_down(
    s3: str, store: TokenStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another preparation may have put its own there meanwhile."""
    monkeypatch.setenv("SHARDTUNE_CACHE", str(tmp_path))
    fsspec.filesystem("s3").put(str(store.folder / "tokenizer"), "chats/swapped/tokenizer", recursive=True)
    digests = folder_digests(store.folder / "tokenizer")
    making = Making("s3://chats/swapped", "f", digests, date(2025, 1, 1), Learning(), (), "tokenizers", 1)
    DocumentMaker(making)
    changed = replace(making, tokenizer={**digests, "tokenizer.json": "0" * 64})
    with pytest.raises(UserError, match=r"tokenizer is not the one that was written for this preparation; run"):
        DocumentMaker(changed)


def test_objects_that_were_deleted_are_made_again(s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a machine remembers of a store that was never finished says nothing of the one that is there now."""
    monkeypatch.setenv("SHARDTUNE_CACHE", str(tmp_path))
    values = {"sources": [{"path": "s3://chats/a.jsonl.gz"}], "tokenizer": {"vocab_size": 400}, "rows_per_shard": 16}
    config, system = DataConfig.model_validate(values), fsspec.filesystem("s3")

    def killed(record: UnitRecord, rows: int) -> None:
        if record.unit == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(config, local_folder("s3://chats/deleted"), killed)
    system.rm("chats/deleted", recursive=True)
    system.pipe_file("chats/deleted/tokenizer/added_tokens.json", b"of an earlier tokenizer")
    prepare(config, local_folder("s3://chats/deleted")).verify()
    system.invalidate_cache()
    assert not system.exists("chats/deleted/tokenizer/added_tokens.json")


def test_an_object_store_that_refuses(s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHARDTUNE_CACHE", str(tmp_path))
    config = DataConfig.model_validate(
        {"sources": [{"path": "s3://chats/a.jsonl.gz"}], "tokenizer": {"vocab_size": 400}}
    )
    with pytest.raises(UserError, match=r"data\.store: s3://no-such-bucket/tokens"):
        prepare(config, local_folder("s3://no-such-bucket/tokens"))


def test_a_file_uri_is_a_folder(tmp_path: Path) -> None:
    assert local_folder(f"file://{tmp_path}") == tmp_path
