"""A share of a preparation: every N-th unit of work, beside other shares on other nodes, without Ray.

Shares meet only in the store's folder. Each looks at all of the input, agrees with the others on the settings, and
writes its own units; none deletes anything or writes the manifest. Afterwards `prepare` finds the finished units, makes
what is missing, and finishes a store of the same bytes as if it had made all of it.
"""

from dataclasses import dataclass
from pathlib import Path

from data_tools.changes import check_contents
from data_tools.claim import claim, shared, starting
from data_tools.config import DataConfig
from data_tools.documents import DocumentMaker
from data_tools.manifest import check_rejects, totals_of
from data_tools.mirror import Mirror
from data_tools.prepare import OnStart, OnUnit
from data_tools.readers import WorkUnit
from data_tools.records import UnitRecord
from data_tools.store import TokenStore
from data_tools.unfinished import Leftovers, check_noted, finished_units, join
from data_tools.work import Work, look, making_of, place_tokenizer


@dataclass(frozen=True)
class Share:
    """The units of one of several processes that prepare together."""

    number: int
    """From 0."""
    of: int

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"

    def units(self, units: list[WorkUnit]) -> list[WorkUnit]:
        """Its own: every `of`-th, so that long and short sources are spread over all shares."""
        return [unit for unit in units if unit.number % self.of == self.number]


@dataclass(frozen=True)
class MadeShare:
    """What a share did."""

    units: int
    """All that are its own."""
    of_units: int
    """All of the store."""
    made: int
    """Its own that were not finished before."""
    totals: dict[str, int]
    """Of the rows of its units; empty where the store is finished."""
    finished: bool = False
    """Whether the whole store is, so that there was nothing to do."""


def prepare_share(
    config: DataConfig,
    store: Path,
    share: Share,
    on_unit: OnUnit = lambda record, total: None,
    lock_file: Path | None = None,
    on_start: OnStart = lambda left: None,
) -> MadeShare:
    """Make a share's units, in this process; finished ones are kept.

    Args:
        config: the run's `data` section; `actors` is not looked at.
        store: the folder to write.
        share: which units.
        on_unit: told about progress, with the rows of this share.
        lock_file: pins what is on the hub, where `fetch` wrote it.
        on_start: told which of the units are done already.

    Raises:
        UserError: an input is missing or empty, other shares have other settings, this one alone rejects more rows
            than the whole input may have, a proof of the masks failed, the lock pins other inputs, the finished store
            belongs to other settings, or a process without a share is at it.
    """
    claim(store)
    with shared(store):
        work = look(config, store, lock_file)
        mirror, own = Mirror(store), share.units(work.given.units)
        with mirror.locked():
            finished = mirror.refresh()
        if finished:
            check_contents(store, TokenStore(store).manifest, work.made_with)
            return MadeShare(len(own), len(work.given.units), made=0, totals={}, finished=True)
        with starting(store):
            join(mirror, work.made_with)
            place_tokenizer(work, mirror)
        left = Leftovers(finished_units(mirror, own, work.fingerprint), None)
        on_start(left)
        records = _make_shards(mirror, work, own, on_unit) if own else []
        return MadeShare(len(own), len(work.given.units), len(own) - len(left.kept), totals_of(records))


def _make_shards(mirror: Mirror, work: Work, own: list[WorkUnit], on_unit: OnUnit) -> list[UnitRecord]:
    """The records of the share's units."""
    maker, rows = DocumentMaker(making_of(work, mirror)), sum(unit.rows for unit in own)
    records: list[UnitRecord] = []
    for unit in own:
        if mirror.uri:  # no lock of an object store keeps others away
            check_noted(mirror, work.made_with)
        record = maker.make_shard(unit)
        on_unit(record, rows)
        records.append(record)
        # What all shares reject together is counted by who finishes the store.
        check_rejects(mirror, records, work.rows, work.config.max_reject_fraction)
    return records
