"""The driver: sources → units of work → actors → shards → manifest. The only file that imports Ray.

Killed at any moment, it goes on where it was: finished units are skipped, and the manifest comes last.
"""

import fcntl
import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
from transformers import PreTrainedTokenizerBase

from data_tools.chat import ChatTemplate
from data_tools.config import DataConfig, TokenizerTraining
from data_tools.documents import DocumentMaker, UnitRecord, read_record, read_unit_index
from data_tools.errors import RowError, UserError
from data_tools.files import content_digest, file_name, is_hub_id
from data_tools.formats import to_conversation
from data_tools.hub import tokenizer_folder
from data_tools.lock import Lock
from data_tools.readers import WorkUnit, read_rows
from data_tools.samples import write_python_docs
from data_tools.sources import SourceFiles, resolve_sources
from data_tools.store import (
    FORMAT_VERSION,
    INDEX_SCHEMA,
    MANIFEST,
    TokenStore,
    shard_name,
    write_arrow,
    write_json,
    write_text,
)
from data_tools.tokenizer import load_tokenizer, read_template, tokenizer_digest, train_tokenizer, vocabulary_size
from data_tools.units import work_units

LOCK = ".lock"
IN_PROCESS_ROWS = 8_000
"""Below this many rows, starting Ray takes longer than the work."""

OnUnit = Callable[[UnitRecord, int], None]
"""Called with each finished unit and the number of rows of all units."""


def prepare(
    config: DataConfig, store: Path, on_unit: OnUnit = lambda record, total: None, lock_file: Path | None = None
) -> TokenStore:
    """Make the token store, or finish it; a finished store with the same settings is only opened.

    Args:
        config: the run's `data` section.
        store: the folder to write.
        on_unit: told about progress.
        lock_file: pins what is on the hub, where `fetch` wrote it.

    Raises:
        UserError: an input is missing or empty, no row became a document, or the store belongs to other settings.
    """
    _claim(store)
    with _locked(store):
        lock = Lock.read(lock_file) if lock_file else None
        sources = _sources(config, store, lock)
        units = work_units(sources, config.rows_per_shard)
        tokenizer = _tokenizer(config, units, lock)
        settings = _settings(config, sources, tokenizer)
        fingerprint = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
        if (store / MANIFEST).exists():
            return _reopen(store, settings, fingerprint)
        _start_store(store, tokenizer, config, units, fingerprint)
        records = _make_shards(config, store, units, fingerprint, on_unit)
        return _finish_store(store, sources, {"asked": config.asked(), "settings": settings}, records, tokenizer)


def _claim(store: Path) -> None:
    """Make the folder; what is there already must be a store, finished or not: leftovers in it will be deleted."""
    try:
        store.mkdir(parents=True, exist_ok=True)
        if any(store.iterdir()) and not (store / LOCK).exists():
            raise UserError(f"data.store: {store} is not empty and no token store; choose a new folder")
    except OSError as error:
        raise UserError(f"data.store: cannot use {store}: {error.strerror}; choose another folder") from None


@contextmanager
def _locked(store: Path) -> Iterator[None]:
    """One preparation of a store at a time."""
    with open(store / LOCK, "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"{store} is being prepared by another process; wait for it, or choose another store"
            ) from None
        yield


def _sources(config: DataConfig, store: Path, lock: Lock | None) -> list[SourceFiles]:
    sample = store / "sample" / "python_docs.jsonl"
    if any(source.sample for source in config.sources) and not sample.exists():
        write_python_docs(sample)
    return resolve_sources(config.sources, sample, lock)


def _tokenizer(config: DataConfig, units: list[WorkUnit], lock: Lock | None) -> PreTrainedTokenizerBase:
    if isinstance(config.tokenizer, TokenizerTraining):
        tokenizer = train_tokenizer(_texts(units), config.tokenizer.vocab_size)
        if config.chat_template is not None:
            tokenizer.chat_template = read_template(config.chat_template)
        return tokenizer
    name = config.tokenizer
    if is_hub_id(name):
        name = tokenizer_folder(name, config.tokenizer_revision, lock)
    return load_tokenizer(name, config.chat_template)


def _texts(units: list[WorkUnit]) -> Iterator[str]:
    for unit in units:
        for row in read_rows(unit):
            try:
                messages = [] if isinstance(row, RowError) else to_conversation(row).messages
            except RowError:
                continue  # will be a reject, with its reason
            yield from (message["content"] for message in messages if "content" in message)


def _settings(config: DataConfig, sources: list[SourceFiles], tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Everything that decides the tokens: two preparations with equal settings write equal stores."""
    return {
        "format_version": FORMAT_VERSION,
        "tokenizer": tokenizer_digest(tokenizer),
        "chat_template": hashlib.sha256(str(tokenizer.chat_template).encode()).hexdigest(),
        "special_tokens": tokenizer.special_tokens_map,
        "template_date": config.template_date.isoformat(),
        "train_on": config.train_on,
        "rows_per_shard": config.rows_per_shard,
        "sources": [
            {
                "name": source.name,
                "files": [{"name": file_name(file), "blake3": content_digest(file)} for file in source.files],
            }
            for source in sources
        ],
    }


def _reopen(store: Path, settings: dict[str, Any], fingerprint: str) -> TokenStore:
    finished = TokenStore(store)
    if finished.fingerprint != fingerprint:
        made_with = finished.manifest["settings"]
        changed = ", ".join(key for key in settings if settings[key] != made_with.get(key))
        raise UserError(
            f"the token store {store} was made with other settings ({changed}); set data.store to a new folder, "
            f"or delete this one and prepare it again"
        )
    finished.verify()
    return finished


def _start_store(
    store: Path, tokenizer: PreTrainedTokenizerBase, config: DataConfig, units: list[WorkUnit], fingerprint: str
) -> None:
    """Put the tokenizer in place and clear away what an unfinished preparation with other settings left."""
    finished = [unit for unit in units if read_record(store, unit.number, fingerprint)]
    if not finished:
        shutil.rmtree(store / "units", ignore_errors=True)
        shutil.rmtree(store / "shards", ignore_errors=True)
    for folder in ("shards", "units"):
        (store / folder).mkdir(exist_ok=True)
        for leftover in (store / folder).glob(".*.tmp"):
            leftover.unlink()
    tokenizer.save_pretrained(store / "tokenizer")
    saved = load_tokenizer(str(store / "tokenizer"))
    if tokenizer_digest(saved) != tokenizer_digest(tokenizer):
        raise UserError("data.tokenizer: saved and loaded again it encodes differently; save it with this transformers")
    # A template that is broken as a whole is said at once, not once per row.
    ChatTemplate(str(saved.chat_template), saved.special_tokens_map, config.template_date)


def _make_shards(
    config: DataConfig, store: Path, units: list[WorkUnit], fingerprint: str, on_unit: OnUnit
) -> list[UnitRecord]:
    """Every unit's record, in the order of the units."""
    rows = sum(unit.rows for unit in units)
    actors = config.actors
    if actors == "auto":
        actors = 0 if rows < IN_PROCESS_ROWS else len(units)
    arguments = (store.absolute(), fingerprint, config.template_date)
    made = _on_ray(arguments, units, actors) if actors else _in_process(arguments, units)
    records = []
    for record in made:
        on_unit(record, rows)
        records.append(record)
    return sorted(records, key=lambda record: record.unit)


def _in_process(arguments: tuple[Any, ...], units: list[WorkUnit]) -> Iterator[UnitRecord]:
    maker = DocumentMaker(*arguments)
    for unit in units:
        yield maker.make_shard(unit)


def _on_ray(arguments: tuple[Any, ...], units: list[WorkUnit], actors: int) -> Iterator[UnitRecord]:
    """Actors on every node of the cluster at RAY_ADDRESS, or on this machine; a killed actor starts again."""
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray
    from ray.util import ActorPool

    try:
        ray.init(include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        # An actor that finds no CPU would wait for ever with a unit in its hands.
        fitting = min(actors, len(units), int(ray.cluster_resources()["CPU"]))
        remote_maker = ray.remote(num_cpus=1, max_restarts=4, max_task_retries=4)(DocumentMaker)
        pool = ActorPool([remote_maker.remote(*arguments) for _ in range(fitting)])
        yield from pool.map_unordered(lambda maker, unit: maker.make_shard.remote(unit), units)
    except (ray.exceptions.RayError, ConnectionError) as error:
        reason = str(error).strip().splitlines()[-1]
        raise UserError(f"Ray gave up: {reason}; the same command goes on, data.actors=0 does without Ray") from error
    finally:
        ray.shutdown()


def _finish_store(
    store: Path,
    sources: list[SourceFiles],
    settings: dict[str, Any],
    records: list[UnitRecord],
    tokenizer: PreTrainedTokenizerBase,
) -> TokenStore:
    _write_rejects(store / "rejects.jsonl", records)
    if not any(record.documents for record in records):
        raise UserError(f"no row became a document; {_top_reasons(records)}; all of them: {store / 'rejects.jsonl'}")
    index = pa.Table.from_batches([read_unit_index(store, record.unit) for record in records], INDEX_SCHEMA)
    write_arrow(store / "index.arrow", INDEX_SCHEMA, index.combine_chunks().to_batches())
    manifest = {
        "format_version": FORMAT_VERSION,
        "fingerprint": records[0].fingerprint,
        **settings,
        "vocab_size": vocabulary_size(tokenizer),
        "sources": [
            {
                "name": source.name,
                "configured": source.configured,
                **_totals([record for record in records if record.source == number]),
            }
            for number, source in enumerate(sources)
        ],
        "totals": _totals(records),
        "shards": [
            {"file": shard_name(record.unit), "documents": record.documents, "blake3": record.blake3}
            for record in records
        ],
    }
    write_json(store / MANIFEST, manifest)
    shutil.rmtree(store / "units")
    return TokenStore(store)


def _totals(records: list[UnitRecord]) -> dict[str, Any]:
    rejects = [reject for record in records for reject in record.rejects]
    totals = {
        "rows_in": sum(record.rows for record in records),
        "rows_out": sum(record.documents for record in records),
        "rejected": sum(reject.kind == "rejected" for reject in rejects),
        "dropped": sum(reject.kind == "dropped" for reject in rejects),
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
    return "; ".join(f"{count} × {reason}" for reason, count in reasons.most_common(3))
