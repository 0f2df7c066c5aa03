"""The driver: sources → units of work → actors → shards → manifest.

Killed at any moment, it goes on where it was: finished units are skipped, and the manifest comes last.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

from data_tools.actors import make_on_actors
from data_tools.changes import check_contents
from data_tools.claim import claim, locked
from data_tools.config import DataConfig
from data_tools.documents import DocumentMaker, Making
from data_tools.errors import UserError
from data_tools.manifest import check_rejects, remove_units, write_store
from data_tools.mirror import Mirror, open_store
from data_tools.readers import WorkUnit
from data_tools.records import UnitRecord
from data_tools.rejects import REJECTS
from data_tools.store import MANIFEST, TokenStore, write_manifest
from data_tools.unfinished import Leftovers, begin, find_leftovers, remove_half_written
from data_tools.work import Work, look, making_of, place_tokenizer

IN_PROCESS_ROWS = 50_000
"""Below this many rows, one process is done about as soon as actors are."""

OnStart = Callable[[Leftovers], None]
"""Called once, before the first unit is made and any is cleared away, with what an earlier preparation finished."""
OnUnit = Callable[[UnitRecord, int], None]
"""Called with each finished unit and the number of rows of all units."""


def prepare(
    config: DataConfig,
    store: Path,
    on_unit: OnUnit = lambda record, total: None,
    lock_file: Path | None = None,
    on_start: OnStart = lambda left: None,
) -> TokenStore:
    """Make the token store, or finish it; a finished store with the same settings is only opened.

    Args:
        config: the run's `data` section.
        store: the folder to write.
        on_unit: told about progress.
        lock_file: pins what is on the hub, where `fetch` wrote it.
        on_start: told what is done already, and what of it is of no use.

    Raises:
        UserError: an input is missing or empty, too many rows are rejected, no row became a document, a proof of the
            masks failed, the lock pins other inputs, the store belongs to other settings, or another process is at it.
    """
    claim(store)
    with locked(store):
        work = look(config, store, lock_file)
        mirror = Mirror(store)
        with mirror.locked():
            finished = mirror.refresh()
        if not (finished and mirror.uri):  # others, who read a finished store, write in its copy
            remove_half_written(store)
        if finished:
            return _reopen(mirror, work)
        left = find_leftovers(mirror, work.given.units, work.made_with)
        place_tokenizer(work, mirror)
        making = making_of(work, mirror)
        on_start(left)
        begin(mirror, left, work.made_with)
        records = _make_shards(mirror, work, making, left, on_unit)
        facts = {**work.made_with, "encoder": making.engine}
        write_store(mirror, work.given.sources, work.given.configs, records, work.tokenizer, facts)
        return open_store(store)


def _reopen(mirror: Mirror, work: Work) -> TokenStore:
    """Open a finished store of the same tokens, however the configuration asks for them now."""
    store, allowed = mirror.folder, work.config.max_reject_fraction
    finished = open_store(store)
    if finished.fingerprint != work.fingerprint:
        check_contents(store, finished.manifest, work.made_with)
    totals = finished.manifest["totals"]
    if totals["rejected"] > allowed * totals["rows_in"]:
        raise UserError(
            f"the token store {store} was made with {totals['rejected']:,} of {totals['rows_in']:,} rows rejected, "
            f"more than data.max_reject_fraction={allowed:g} allows; the reasons are in {finished.file(REJECTS)}"
        )
    finished.verify()
    remove_units(mirror)
    made = finished.manifest["sources"]
    now = {
        "asked": work.config.asked(),
        "sources": [
            {**facts, "configured": source.configured} for facts, source in zip(made, work.given.sources, strict=True)
        ],
    }
    if any(finished.manifest[key] != value for key, value in now.items()):
        write_manifest(store, {**finished.manifest, **now})
        mirror.push(MANIFEST)
        finished = open_store(store)
    return finished


def _make_shards(mirror: Mirror, work: Work, making: Making, left: Leftovers, on_unit: OnUnit) -> list[UnitRecord]:
    """Every unit's record, in the order of the units."""
    units, actors = work.given.units, work.config.actors
    if actors == "auto":
        missing = sum(unit.rows for unit in units if unit.number not in left.kept)  # shares may have made the others
        actors = 0 if missing < IN_PROCESS_ROWS else len(units)
    records: list[UnitRecord] = []
    for record in make_on_actors(making, units, actors) if actors else _in_process(making, units):
        on_unit(record, work.rows)
        records.append(record)
        check_rejects(mirror, records, work.rows, work.config.max_reject_fraction)
    return sorted(records, key=lambda record: record.unit)


def _in_process(making: Making, units: list[WorkUnit]) -> Iterator[UnitRecord]:
    maker = DocumentMaker(making)
    for unit in units:
        yield maker.make_shard(unit)
