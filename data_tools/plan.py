"""Index + lengths + seed → the pack plan: which documents make which step, on any number of ranks.

    <plan>/plan.json         settings, counts, the store's fingerprint, the plan's own hash
           train.arrow       one row per pack: documents, tokens, trained, cost
           validation.arrow  the same for held-out documents

A step is a set of `packs_per_step` packs. The ranks share it out among themselves, so step k trains on the same
documents on 2 GPUs and on 2,000, and resuming takes one integer.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data_tools.config import DataConfig
from data_tools.errors import UserError
from data_tools.packing import Packs, pack_documents
from data_tools.store import TokenStore, file_digest, read_arrow, write_arrow, write_json

FORMAT_VERSION = 1
PLAN = "plan.json"
NO_PACK = -1
"""Fills the places of a step that has fewer packs than `packs_per_step`, the last one of an epoch."""


@dataclass(frozen=True)
class PlanSettings:
    """Everything besides the store that decides the plan."""

    max_length: int
    too_long: str
    validation_fraction: float
    packs_per_step: int
    seed: int

    @classmethod
    def of(cls, data: DataConfig, packs_per_step: int, seed: int) -> "PlanSettings":
        """Collect the settings from the sections of a run."""
        return cls(data.max_length, data.too_long, data.validation.fraction, packs_per_step, seed)


@dataclass(frozen=True)
class StepSize:
    """An optimizer step over all ranks and micro-batches."""

    packs: int
    tokens: int
    trained_tokens: int
    """N of the loss."""


def make_plan(store: TokenStore, settings: PlanSettings, folder: Path) -> "PackPlan":
    """Compute and write the plan; the same store and settings always give the same bytes.

    Raises:
        UserError: the limit leaves no document to train on, or forbids one.
    """
    index = store.index
    fits = index["length"] <= settings.max_length
    _check_lengths(index["length"], fits, settings)
    held_out = fits & (_unit_interval(index["digest"]) < settings.validation_fraction)
    train = np.flatnonzero(fits & ~held_out)
    validation = np.flatnonzero(held_out)
    if not len(train):
        raise UserError(f"data.validation.fraction={settings.validation_fraction} leaves nothing to train on; lower it")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / PLAN).unlink(missing_ok=True)
    files = {}
    for name, documents in {"train": train, "validation": validation}.items():
        batch = _pack_batch(index, documents, settings.max_length)
        write_arrow(folder / f"{name}.arrow", batch.schema, [batch])
        files[name] = file_digest(folder / f"{name}.arrow")
    facts = {
        "format_version": FORMAT_VERSION,
        "store": store.fingerprint,
        "settings": asdict(settings),
        "files": files,
        "too_long": int((~fits).sum()),
    }
    facts["hash"] = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    write_json(folder / PLAN, facts)
    return PackPlan(folder)


def _check_lengths(lengths: NDArray[Any], fits: NDArray[np.bool_], settings: PlanSettings) -> None:
    if not fits.any():
        raise UserError(
            f"data.max_length={settings.max_length} is shorter than every document (the shortest has {lengths.min()} "
            f"tokens, half of them more than {int(np.median(lengths))}); raise it"
        )
    if settings.too_long == "error" and not fits.all():
        raise UserError(
            f"{int((~fits).sum())} documents have more than data.max_length={settings.max_length} tokens (the longest "
            f"{lengths.max()}); raise it, or set data.too_long=drop"
        )


def _unit_interval(digests: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Hashes of documents as numbers in [0, 1): equal documents fall on the same side of any border."""
    return np.asarray(digests, dtype=np.float64) / 2.0**64


def _pack_batch(index: dict[str, NDArray[Any]], documents: NDArray[np.int64], max_length: int) -> pa.RecordBatch:
    lengths = index["length"][documents].astype(np.int64)
    packs = pack_documents(lengths, max_length)
    return pa.record_batch(
        {
            "documents": pa.ListArray.from_arrays(
                packs.offsets.astype(np.int32), documents[packs.documents].astype(np.uint32)
            ),
            "tokens": packs.sums(lengths).astype(np.int32),
            "trained": packs.sums(index["trained"][documents].astype(np.int64)).astype(np.int32),
            # Attention within a document grows with the square of its length: what differs between equally full packs.
            "cost": packs.sums(lengths**2),
        }
    )


class PackPlan:
    """A plan on disk, memory-mapped: any step in constant time.

    Raises:
        UserError: there is no plan in the folder, or it was made by another version.
    """

    def __init__(self, folder: Path) -> None:
        path = folder / PLAN
        if not path.exists():
            raise UserError(f"there is no pack plan in {folder}; run `shardtune plan` with the same configuration")
        self.folder = folder
        self.facts: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if self.facts["format_version"] != FORMAT_VERSION:
            raise UserError(f"{path} has another format; run `shardtune plan` again")
        self.settings = PlanSettings(**self.facts["settings"])
        self.train = PackTable(folder / "train.arrow")
        self.validation = PackTable(folder / "validation.arrow")
        self._order = lru_cache(maxsize=2)(self._order_of_epoch)

    @property
    def hash(self) -> str:
        """Names the plan; a checkpoint only continues on the plan that it was made with."""
        return str(self.facts["hash"])

    @property
    def steps_per_epoch(self) -> int:
        """Steps that see every pack once; the last may be smaller."""
        return -(-len(self.train) // self.settings.packs_per_step)

    @property
    def fill(self) -> float:
        """Share of the places in training packs that hold a token."""
        return float(self.train.tokens.sum() / (len(self.train) * self.settings.max_length))

    def packs_of_step(self, step: int) -> NDArray[np.int64]:
        """The packs of a step, costliest first, filled up with `NO_PACK`."""
        epoch, position = divmod(step, self.steps_per_epoch)
        size = self.settings.packs_per_step
        packs = self._order(epoch)[position * size : (position + 1) * size]
        packs = packs[np.argsort(-self.train.cost[packs], kind="stable")]
        return np.concatenate([packs, np.full(size - len(packs), NO_PACK)])

    def size_of_step(self, step: int) -> "StepSize":
        """What the ranks get through together in one step."""
        packs = self.packs_of_step(step)
        packs = packs[packs != NO_PACK]
        return StepSize(len(packs), int(self.train.tokens[packs].sum()), int(self.train.trained[packs].sum()))

    def micro_batches(self, step: int, rank: int, ranks: int, packs_per_micro_batch: int) -> list[NDArray[np.int64]]:
        """The packs of one rank in a step, one array per micro-batch (without `NO_PACK`; an array may be empty)."""
        rows = share_out(self.packs_of_step(step), ranks, packs_per_micro_batch)[:, :, rank]
        return [row[row != NO_PACK] for row in rows]

    def imbalance(self, ranks: int, packs_per_micro_batch: int) -> float:
        """How uneven attention work is over ranks, in the first epoch: 1 - mean / max over micro-steps, by weight."""
        costs = np.concatenate([self.train.cost, [0]])  # NO_PACK costs nothing
        slowest = total = 0
        for step in range(self.steps_per_epoch):
            by_rank = costs[share_out(self.packs_of_step(step), ranks, packs_per_micro_batch)].sum(axis=1)
            slowest += int(by_rank.max(axis=1).sum())
            total += int(by_rank.sum())
        return 1 - total / (slowest * ranks)

    def _order_of_epoch(self, epoch: int) -> NDArray[np.int64]:
        """A shuffle by hashed numbers: the same on every machine and for every version of numpy."""
        return np.argsort(_hashes(len(self.train), self.settings.seed, epoch), kind="stable")


class PackTable:
    """The packs of one half of a plan."""

    def __init__(self, path: Path) -> None:
        batch = read_arrow(path)
        self._documents: pa.ListArray = batch.column("documents")
        self.tokens: NDArray[np.int32] = batch.column("tokens").to_numpy()
        self.trained: NDArray[np.int32] = batch.column("trained").to_numpy()
        self.cost: NDArray[np.int64] = batch.column("cost").to_numpy()

    def __len__(self) -> int:
        return len(self._documents)

    @cached_property
    def packs(self) -> Packs:
        """The documents of every pack, without copying."""
        return Packs(self._documents.values.to_numpy(), self._documents.offsets.to_numpy())


def share_out(packs: NDArray[np.int64], ranks: int, packs_per_micro_batch: int) -> NDArray[np.int64]:
    """Deal packs, sorted by cost, to micro-batches: shape [micro-steps, packs per micro-batch, ranks].

    Neighbours in cost run at the same time, and every second row is dealt backwards: ranks wait little for each other.
    """
    dealt = packs.reshape(-1, packs_per_micro_batch, ranks).copy()
    dealt[:, 1::2] = dealt[:, 1::2, ::-1]
    return dealt


def _hashes(count: int, seed: int, epoch: int) -> NDArray[np.uint64]:
    """splitmix64 of (seed, epoch, 0..count) (Steele, Lea and Flood, OOPSLA 2014)."""
    key = int.from_bytes(hashlib.sha256(f"{seed}/{epoch}".encode()).digest()[:8], "little")
    with np.errstate(over="ignore"):
        x = (np.arange(count, dtype=np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(key)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))
