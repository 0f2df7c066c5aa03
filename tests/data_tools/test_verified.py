"""What of a store is read again: all when it is planned, what was changed since when it is trained on."""

import json
import os
import shutil
from pathlib import Path

import pytest

from data_tools.errors import UserError
from data_tools.store import TokenStore, write_json, write_manifest
from data_tools.verified import verify_store


@pytest.fixture
def copy(store: TokenStore, tmp_path: Path) -> TokenStore:
    shutil.copytree(store.folder, tmp_path / "tokens")
    return TokenStore(tmp_path / "tokens")


def flip(path: Path, same_time: bool) -> None:
    """Change one bit in the middle of a file."""
    before = path.stat()
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    if same_time:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    else:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))


def test_a_plan_reads_everything(copy: TokenStore, tmp_path: Path) -> None:
    record = tmp_path / "verified.json"
    write_json(record, verify_store(copy, record, everything=True))
    flip(copy.folder / "shards" / "00002.arrow", same_time=True)
    verify_store(copy, record, everything=False)  # nothing says that it was changed
    for everything in (True, False):  # once it is known, training knows it too
        with pytest.raises(UserError, match=r"00002\.arrow is not what was written; delete .* `shardtune prepare`"):
            verify_store(copy, record, everything)


@pytest.mark.parametrize("name", ["shards/00001.arrow", "index.arrow", "tokenizer/tokenizer.json"])
def test_training_reads_what_was_changed(copy: TokenStore, tmp_path: Path, name: str) -> None:
    record = tmp_path / "verified.json"
    write_json(record, verify_store(copy, record, everything=True))
    before = verify_store(copy, record, everything=False)
    (copy.folder / "shards" / "00003.arrow").touch()  # changed, but the same
    assert verify_store(copy, record, everything=False) != before
    flip(copy.folder / name, same_time=False)
    for _ in range(2):
        with pytest.raises(UserError, match=r"is not what was written"):
            verify_store(copy, record, everything=False)


@pytest.mark.parametrize("text", [None, "", "[1]", "{}"])
def test_without_a_record_everything_is_read(copy: TokenStore, tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "verified.json").write_text(text)
    flip(copy.folder / "shards" / "00000.arrow", same_time=True)
    with pytest.raises(UserError, match=r"00000\.arrow is not what was written"):
        verify_store(copy, tmp_path / "verified.json", everything=False)


def test_a_record_of_another_store_says_nothing(copy: TokenStore, tmp_path: Path) -> None:
    """The same path, size and time, but other checksums: the store was prepared again."""
    record = tmp_path / "verified.json"
    write_json(record, verify_store(copy, record, everything=True))
    flip(copy.folder / "shards" / "00000.arrow", same_time=True)
    manifest = json.loads((copy.folder / "manifest.json").read_text())
    manifest["shards"][0]["blake3"] = "0" * 64
    write_manifest(copy.folder, manifest)
    with pytest.raises(UserError, match=r"00000\.arrow is not what was written"):
        verify_store(TokenStore(copy.folder), record, everything=False)
