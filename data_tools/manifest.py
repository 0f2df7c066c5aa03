"""The end of a preparation: accounts of all rows, the index, and the manifest, which comes last."""

import shutil
from typing import Any

import numpy as np
import pyarrow as pa
from transformers import PreTrainedTokenizerBase

from data_tools.config import SourceConfig
from data_tools.errors import UserError
from data_tools.mirror import Mirror
from data_tools.proofs import proof_report
from data_tools.records import UnitRecord, read_unit_index, rejects_files
from data_tools.rejects import gather_rejects, reject_reasons, top_reasons
from data_tools.sources import SourceFiles
from data_tools.store import (
    FORMAT_VERSION,
    INDEX_SCHEMA,
    MANIFEST,
    file_digest,
    folder_digests,
    shard_name,
    write_arrow,
    write_manifest,
)
from data_tools.tokenizer import vocabulary_size


def check_rejects(store: Mirror, records: list[UnitRecord], rows: int, allowed: float) -> None:
    """Stop as soon as more rows are rejected than the whole input may have.

    Args:
        store: where `rejects.jsonl` is written then.
        records: of the units that are finished.
        rows: of the whole input.
        allowed: `data.max_reject_fraction`.

    Raises:
        UserError: with the most frequent reasons.
    """
    rejected = sum(record.rejected for record in records)
    if rejected > allowed * rows:
        path = gather_rejects(store, rejects_files(store, records))
        reasons = [reason for reason in reject_reasons(path) if reason.kind == "rejected"]
        raise UserError(
            f"{rejected:,} of {rows:,} rows are rejected, more than data.max_reject_fraction={allowed:g} allows: "
            f"{top_reasons(reasons)}; all that were found until then: {path}"
        )


def write_store(
    store: Mirror,
    sources: list[SourceFiles],
    configs: tuple[SourceConfig, ...],
    records: list[UnitRecord],
    tokenizer: PreTrainedTokenizerBase,
    facts: dict[str, Any],
) -> None:
    """Write rejects, index and manifest of finished shards.

    Args:
        store: where the shards are.
        sources: in the manifest's order.
        configs: of each source, with its format.
        records: of every unit, in order.
        tokenizer: of the store.
        facts: more of the manifest.

    Raises:
        UserError: no row became a document, or a unit's file was changed since.
    """
    folder = store.folder
    rejects = gather_rejects(store, rejects_files(store, records))
    if not any(record.documents for record in records):
        raise UserError(f"no row became a document; {top_reasons(reject_reasons(rejects))}; all of them: {rejects}")
    write_arrow(folder / "index.arrow", INDEX_SCHEMA, [_whole_index(store, records)])
    of_source = [[record for record in records if record.source == number] for number in range(len(sources))]
    manifest = {
        "format_version": FORMAT_VERSION,
        "fingerprint": records[0].fingerprint,
        **facts,
        "vocab_size": vocabulary_size(tokenizer),
        "sources": [
            {"name": source.name, "configured": source.configured, "format": config.format, **totals_of(own)}
            for source, config, own in zip(sources, configs, of_source, strict=True)
        ],
        "totals": totals_of(records),
        "index": file_digest(folder / "index.arrow"),
        "tokenizer": folder_digests(folder / "tokenizer"),
        "proofs": proof_report([record.proved for record in records], sum(record.documents for record in records)),
        "shards": [
            {"file": shard_name(record.unit), "documents": record.documents, "blake3": record.shard_digest}
            for record in records
        ],
    }
    _keep_only(store, [shard["file"] for shard in manifest["shards"]])
    write_manifest(folder, manifest)
    store.push("index.arrow", MANIFEST)
    remove_units(store)


def _whole_index(store: Mirror, records: list[UnitRecord]) -> pa.RecordBatch:
    """The index rows of all units as one batch; one unit's file at a time is mapped, which counts as memory too."""
    columns = [
        np.empty(sum(record.documents for record in records), field.type.to_pandas_dtype()) for field in INDEX_SCHEMA
    ]
    first = 0
    for record in records:
        part = read_unit_index(store, record)
        for column, values in zip(columns, part.columns, strict=True):
            column[first : first + len(part)] = values.to_numpy()
        first += len(part)
    return pa.record_batch([pa.array(column) for column in columns], INDEX_SCHEMA)


def remove_units(store: Mirror) -> None:
    """Delete what only an unfinished store needs; who was killed after the manifest has left it."""
    store.remove("units")
    for name in ("units", "workers"):
        shutil.rmtree(store.folder / name, ignore_errors=True)


def _keep_only(store: Mirror, shards: list[str]) -> None:
    """Delete what else is in `shards/`: of actors that were killed, or of files that were cut into more units."""
    for path in (store.folder / "shards").iterdir():
        if f"shards/{path.name}" not in shards:
            path.unlink()
    store.remove("shards", keep=shards)


def totals_of(records: list[UnitRecord]) -> dict[str, int]:
    """What became of all rows of some units."""
    totals = {
        "rows_in": sum(record.rows for record in records),
        "rows_out": sum(record.rows_out for record in records),
        "rejected": sum(record.rejected for record in records),
        "dropped": sum(record.dropped for record in records),
        "rewritten": sum(record.rewritten for record in records),
        "documents": sum(record.documents for record in records),
        "tokens": sum(record.tokens for record in records),
        "trained_tokens": sum(record.trained_tokens for record in records),
    }
    assert totals["rows_in"] == totals["rows_out"] + totals["rejected"] + totals["dropped"], "a row was lost"
    return totals
