"""Records of finished units of work: what a killed preparation goes on from."""

import json
from dataclasses import asdict, dataclass

import pyarrow as pa

from data_tools.mirror import Mirror
from data_tools.readers import WorkUnit
from data_tools.rejects import unit_rejects
from data_tools.store import shard_name


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
    blake3: str
    """Of the shard."""

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
    def files(self) -> list[str]:
        """What is there when the record is: shard, index and, where there are any, rejects."""
        rejects = [unit_rejects(self.unit)] if self.rejected or self.dropped else []
        return [shard_name(self.unit), index_name(self.unit), *rejects]


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
    try:
        facts = json.loads((store.folder / record_name(unit.number)).read_text(encoding="utf-8"))
    except ValueError:
        return None  # damaged: the unit is made again
    if (facts["fingerprint"], facts["cut"]) != (fingerprint, asdict(unit)):
        return None
    return UnitRecord(**{**facts, "cut": unit})


def read_unit_index(store: Mirror, unit: int) -> pa.Table:
    """The index rows of a finished unit, memory-mapped: the indexes of all units are held at once."""
    assert store.pull(index_name(unit), again=True), "the index is written before the record"
    return pa.ipc.open_file(pa.memory_map(str(store.folder / index_name(unit)))).read_all()
