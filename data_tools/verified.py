"""Shards that were compared with their checksums, so that a large store is not read as a whole at every start.

`verified.json`, beside the plan of a run, has the size and the time of change of each shard when it was found whole,
and of each file of a source that was read to see whether it was changed (`data_tools.stale`).
"""

import json
from pathlib import Path
from typing import Any

from data_tools.mirror import REMOTE
from data_tools.store import MANIFEST, TokenStore

VERIFIED = "verified.json"


def verify_store(store: TokenStore, record: Path, everything: bool) -> dict[str, Any]:
    """Compare a store with the checksums in its manifest.

    Args:
        store: its index and tokenizer are read each time.
        record: where `verified.json` is, or will be.
        everything: whether shards are read that are as they were when the record was written, too.

    Returns:
        What the record is to say, once there is a plan to write it beside.

    Raises:
        UserError: a file is missing or was changed.
    """
    if everything:
        record.unlink(missing_ok=True)  # should a shard be found broken, the record must not vouch for it later
    known = known_files(record)
    shards = [shard["file"] for shard in store.manifest["shards"]]
    found: dict[str, Any] = {}
    store.check_tokenizer()
    store.check("index.arrow")
    for name in shards:
        path = store.file(name)
        state = path.stat()  # before it is read: what changes meanwhile has another time
        facts = {"blake3": store.digests[name], "size": state.st_size, "mtime_ns": state.st_mtime_ns}
        place = str(path.absolute())
        if known.get(place) != facts:
            store.check(name)
        found[place] = facts
    return found


def check_newer(store: TokenStore) -> None:
    """Compare the shards that are missing, or were changed after the manifest, which was written last; and the index.

    Raises:
        UserError: one is not what was written.
    """
    store.check("index.arrow")
    finished = (store.folder / MANIFEST).stat().st_mtime_ns
    is_copy = (store.folder / REMOTE).exists()  # where shards come down when they are first read
    for shard in store.manifest["shards"]:
        path = store.folder / shard["file"]
        if path.stat().st_mtime_ns > finished if path.exists() else not is_copy:
            store.check(shard["file"])


def known_files(record: Path) -> dict[str, Any]:
    """What a record says: by path, `blake3`, `size` and `mtime_ns` of a file when it was read."""
    try:
        known = json.loads(record.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}  # of no use: everything is read
    return known if isinstance(known, dict) else {}
