"""Records of finished units of work: what a killed preparation goes on from."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import pyarrow as pa

from data_tools.errors import UserError
from data_tools.mirror import Mirror
from data_tools.readers import WorkUnit
from data_tools.rejects import unit_rejects
from data_tools.sealed import is_sealed, read_object
from data_tools.store import file_digest, shard_name


@dataclass(frozen=True)
class UnitRecord:
    """What became of a unit. Written after its shard: its existence means that the shard is complete."""

    fingerprint: str
    cut: WorkUnit
    """Which rows they are: where another version cuts the files elsewhere, the unit is made again."""
    rows_out: int
    documents: int
    tokens: int
    trained_tokens: int
    rewritten: int
    """Rows whose earlier turns the template rewrites, of which `data.on_rewrite` kept what can be learnt."""
    proved: dict[str, int]
    """How many documents each proof was made for."""
    rejected: int
    dropped: int
    """Rows that did not become documents: their file is that of `unit_rejects`."""
    blake3: dict[str, str]
    """What is there when the record is, and its checksums: shard, index and, where there are any, rejects."""

    @property
    def unit(self) -> int:
        """The number of the unit."""
        return self.cut.number

    @property
    def source(self) -> int:
        """Position of the source in the manifest."""
        return self.cut.source

    @property
    def rows(self) -> int:
        """All rows of the unit."""
        return self.cut.rows

    @property
    def shard_digest(self) -> str:
        """BLAKE3 of the shard."""
        return self.blake3[shard_name(self.unit)]


def record_name(unit: int) -> str:
    """The record of a unit, below the store's folder."""
    return f"units/{unit:05d}.json"


def index_name(unit: int) -> str:
    """The index rows of a unit, below the store's folder."""
    return f"units/{unit:05d}.arrow"


def read_record(store: Mirror, unit: WorkUnit, fingerprint: str) -> UnitRecord | None:
    """The record of a finished unit, or None when it is not finished, of other rows or of another preparation."""
    # Of an object store only what is there counts: a copy here may be of a store that was deleted since.
    if not store.pull(record_name(unit.number), again=True):
        return None
    facts = read_object(store.folder / record_name(unit.number))
    names = {field.name for field in fields(UnitRecord)}
    if facts is None or not is_sealed(facts) or not names < facts.keys():
        return None  # damaged, or of another version: the unit is made again
    if (facts["fingerprint"], facts["cut"]) != (fingerprint, asdict(unit)):
        return None
    return UnitRecord(**{**{name: facts[name] for name in names}, "cut": unit})


def is_whole(store: Mirror, record: UnitRecord) -> bool:
    """Whether a unit's files are what its record says; a shard in an object store is compared when it comes down."""
    return all(
        store.has(name) if store.uri and name.startswith("shards/") else _is_there(store, record, name)
        for name in record.blake3
    )


def _is_there(store: Mirror, record: UnitRecord, name: str) -> bool:
    return store.pull(name, again=True) and file_digest(store.folder / name) == record.blake3[name]


def unit_file(store: Mirror, record: UnitRecord, name: str) -> Path:
    """A file of a finished unit, compared with its record.

    Raises:
        UserError: it was changed since.
    """
    if not _is_there(store, record, name):
        raise UserError(
            f"{store.folder / name} is not what was written; run the same command again, which makes its unit again"
        )
    return store.folder / name


def rejects_files(store: Mirror, records: list[UnitRecord]) -> Iterator[Path]:
    """The rejects of finished units, in their order, one by one; raises what `unit_file` does."""
    for record in sorted(records, key=lambda record: record.unit):
        if (name := unit_rejects(record.unit)) in record.blake3:
            yield unit_file(store, record, name)


def read_unit_index(store: Mirror, record: UnitRecord) -> pa.Table:
    """The index rows of a finished unit, memory-mapped; raises what `unit_file` does."""
    return pa.ipc.open_file(pa.memory_map(str(unit_file(store, record, index_name(record.unit))))).read_all()
