"""Token stores made by hand, for what no preparation writes by chance."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from data_tools.store import INDEX_SCHEMA, TokenStore, file_digest, shard_schema, write_arrow, write_manifest

HOSTILE = "\x1b[31mred\x07 [bold]b[/bold] </pre><script>alert(1)</script> \u202eevil\u2066 \x9b2J\r\ttab\x00"
"""Acts on terminals, on rich, on browsers and on readers, if it is let."""
ACTING = "[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]"
"""Matches what of it may never be shown as it is."""


def write_store(
    folder: Path, like: TokenStore, documents: Sequence[Mapping[str, Any]], name: str = "made", **manifest: Any
) -> TokenStore:
    """A store of `ids`, `runs` and `weights`, all of one source, with the tokenizer of another store."""
    shutil.copytree(like.folder / "tokenizer", folder / "tokenizer")
    (folder / "shards").mkdir()
    count = len(documents)
    lengths = [len(document["ids"]) for document in documents]
    trained = [sum(document["runs"][1::2]) for document in documents]
    ids, runs, weights = ([document.get(key) for document in documents] for key in ("ids", "runs", "weights"))
    _write(
        folder / "shards" / "00000.arrow",
        shard_schema(like.vocab_size),
        [ids, runs, weights, [0] * count, list(range(count))],
    )
    _write(
        folder / "index.arrow",
        INDEX_SCHEMA,
        [lengths, trained, trained, [0] * count, list(range(count)), list(range(count))],
    )
    (folder / "rejects.jsonl").write_text("")
    totals = {"rows_in": count, "rows_out": count, "rejected": 0, "dropped": 0}
    totals |= {"tokens": sum(lengths), "trained_tokens": sum(trained)}
    facts = {
        "sources": [{"name": name, **totals}],
        "totals": totals,
        "index": file_digest(folder / "index.arrow"),
        "shards": [
            {"file": "shards/00000.arrow", "documents": count, "blake3": file_digest(folder / "shards" / "00000.arrow")}
        ],
    }
    write_manifest(folder, {**like.manifest, **facts, **manifest})
    return TokenStore(folder)


def _write(path: Path, schema: pa.Schema, columns: list[Any]) -> None:
    arrays = [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)]
    write_arrow(path, schema, [pa.record_batch(arrays, schema=schema)])
