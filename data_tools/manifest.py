"""The end of a preparation: accounts of all rows, the index, and the manifest, which comes last."""

import json
import shutil
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
from transformers import PreTrainedTokenizerBase

from data_tools.config import SourceConfig
from data_tools.documents import UnitRecord, read_unit_index
from data_tools.errors import UserError
from data_tools.mirror import Mirror
from data_tools.proofs import proof_report
from data_tools.sources import SourceFiles
from data_tools.store import (
    FORMAT_VERSION,
    INDEX_SCHEMA,
    MANIFEST,
    file_digest,
    shard_name,
    write_arrow,
    write_json,
    write_text,
)
from data_tools.tokenizer import vocabulary_size

REJECTS = "rejects.jsonl"


def check_rejects(records: list[UnitRecord], rejected: int, rows: int, allowed: float, store: Path) -> None:
    """Stop as soon as more rows are rejected than the whole input may have.

    Args:
        records: of the units that are finished.
        rejected: their rejected rows.
        rows: of the whole input.
        allowed: `data.max_reject_fraction`.
        store: where the rejects are written.

    Raises:
        UserError: with the most frequent reasons.
    """
    if rejected > allowed * rows:
        _write_rejects(store / REJECTS, records)
        raise UserError(
            f"{rejected:,} of {rows:,} rows are rejected, more than data.max_reject_fraction={allowed:g} allows: "
            f"{_top_reasons(records)}; all of them: {store / REJECTS}"
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
        UserError: no row became a document.
    """
    folder = store.folder
    _write_rejects(folder / REJECTS, records)
    if not any(record.documents for record in records):
        raise UserError(f"no row became a document; {_top_reasons(records)}; all of them: {folder / REJECTS}")
    index = pa.concat_tables(read_unit_index(store, record.unit) for record in records).combine_chunks()
    write_arrow(folder / "index.arrow", INDEX_SCHEMA, index.to_batches())
    of_source = [[record for record in records if record.source == number] for number in range(len(sources))]
    manifest = {
        "format_version": FORMAT_VERSION,
        "fingerprint": records[0].fingerprint,
        **facts,
        "vocab_size": vocabulary_size(tokenizer),
        "sources": [
            {"name": source.name, "configured": source.configured, "format": config.format, **_totals(own)}
            for source, config, own in zip(sources, configs, of_source, strict=True)
        ],
        "totals": _totals(records),
        "index": file_digest(folder / "index.arrow"),
        "proofs": proof_report([record.proved for record in records], sum(record.documents for record in records)),
        "shards": [
            {"file": shard_name(record.unit), "documents": record.documents, "blake3": record.blake3}
            for record in records
        ],
    }
    for leftover in (folder / "shards").glob(".*.tmp"):  # of actors that were killed
        leftover.unlink()
    write_json(folder / MANIFEST, manifest)
    store.push("index.arrow", REJECTS, MANIFEST)
    store.remove("units")
    shutil.rmtree(folder / "units")
    shutil.rmtree(folder / "workers", ignore_errors=True)


def _totals(records: list[UnitRecord]) -> dict[str, Any]:
    rejects = [reject for record in records for reject in record.rejects]
    totals = {
        "rows_in": sum(record.rows for record in records),
        "rows_out": sum(record.rows_out for record in records),
        "rejected": sum(reject.kind == "rejected" for reject in rejects),
        "dropped": sum(reject.kind == "dropped" for reject in rejects),
        "rewritten": sum(record.rewritten for record in records),
        "documents": sum(record.documents for record in records),
        "tokens": sum(record.tokens for record in records),
        "trained_tokens": sum(record.trained_tokens for record in records),
    }
    assert totals["rows_in"] == totals["rows_out"] + totals["rejected"] + totals["dropped"], "a row was lost"
    return totals


def _write_rejects(path: Path, records: list[UnitRecord]) -> None:
    lines = "".join(
        json.dumps(asdict(reject), ensure_ascii=False) + "\n" for record in records for reject in record.rejects
    )
    write_text(path, lines)


def _top_reasons(records: list[UnitRecord]) -> str:
    reasons = Counter(reject.reason for record in records for reject in record.rejects)
    return "; ".join(f"{count:,} × {reason}" for reason, count in reasons.most_common(3))
