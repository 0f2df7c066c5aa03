"""Shards that were compared with their checksums, so that a large store is not read as a whole at every start.

`verified.json`, beside the plan of a run, has the size and the time of change of each shard when it was found whole.
"""

import json
from pathlib import Path
from typing import Any

from data_tools.store import TokenStore, write_json

VERIFIED = "verified.json"


def verify_store(store: TokenStore, record: Path, everything: bool) -> None:
    """Compare a store with the checksums in its manifest, and write the record.

    Args:
        store: its index and tokenizer are read each time.
        record: where `verified.json` is.
        everything: whether shards are read that are as they were when the record was written, too.

    Raises:
        UserError: a file is missing or was changed.
    """
    if everything:
        record.unlink(missing_ok=True)  # should a shard be found broken, the record must not vouch for it later
    known = _read(record)
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
    record.parent.mkdir(parents=True, exist_ok=True)
    if found != known:
        write_json(record, found)


def _read(record: Path) -> dict[str, Any]:
    try:
        known = json.loads(record.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}  # of no use: everything is read
    return known if isinstance(known, dict) else {}
