"""Index + mixture + lengths + seed → the pack plan: which documents make which step, on any number of ranks.

    <plan>/plan.json         settings, counts per source, the store's fingerprint, the plan's own hash
           train.arrow       one row per pack: documents, tokens, trained, weight, cost; where documents are cut also
                             `starts` and `lengths` of the pieces
           validation.arrow  the same for held-out documents

A step is a set of `packs_per_step` packs. The ranks share it out among themselves, so step k trains on the same
documents on 2 GPUs and on 2,000, and resuming takes one integer. The first step of a run has its costliest pack: memory
that is too small is found at once.
"""

from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data_tools.balance import NO_PACK, costliest_first, imbalance, order_of_epoch, share_out
from data_tools.errors import UserError
from data_tools.hashing import keyed_hashes
from data_tools.lengths import Pieces, cut_documents, length_report, wrap
from data_tools.mixture import mix, source_facts
from data_tools.pack_table import PackTable
from data_tools.packing import Packs, pack_documents, stable_order
from data_tools.plan_settings import PlanSettings, SourceShare
from data_tools.sealed import is_sealed, read_object, seal
from data_tools.store import TokenStore, file_digest, write_arrow, write_json

__all__ = ["NO_PACK", "PLAN", "PackPlan", "PackTable", "PlanSettings", "SourceShare", "StepSize", "make_plan"]

FORMAT_VERSION = 4
PLAN = "plan.json"


@dataclass(frozen=True)
class StepSize:
    """An optimizer step over all ranks and micro-batches."""

    packs: int
    tokens: int
    trained_tokens: int
    """Labels."""
    weight: float
    """N of the loss: the sum of the labels' weights."""
    pairs: int
    """Σ length² over documents, which attention costs; 0 in a plan whose `attention_cost` is 0."""


def make_plan(store: TokenStore, settings: PlanSettings, folder: Path) -> "PackPlan":
    """Compute and write the plan; the same store and settings always give the same bytes.

    A whole plan of the same store and settings is left in place: who is killed while a run goes on loses no plan.

    Raises:
        UserError: the settings leave nothing to train on, or nothing of some source, or forbid a document.
    """
    if _is_made(store, settings, folder):
        return PackPlan(folder)
    index = store.index
    shares = _shares(store, settings)
    if settings.packing == "wrapped":  # the stream is cut, no matter how long a document is
        pieces, unlabelled = Pieces.whole(index, np.flatnonzero(index["trained"] > 0)), 0
    else:
        pieces, unlabelled = cut_documents(store, settings.max_length, settings.too_long)
    tokens = np.bincount(pieces.documents, pieces.lengths, len(store)).astype(np.int64)
    mixture = mix(index, tokens, shares, settings)
    sources = source_facts(index, tokens, mixture, [source["name"] for source in store.manifest["sources"]])
    _check_mixture(sources, store, settings)
    batches, lost = {}, {}
    for name, times in {"train": mixture.times, "validation": mixture.validation.astype(np.uint32)}.items():
        repeated = _repeated(pieces, times, index["digest"], settings.seed)
        batches[name] = batch = _pack_batch(store, repeated, settings)
        lost[name] = int(repeated.lengths.sum(dtype=np.int64) - batch.column("tokens").to_numpy().sum(dtype=np.int64))
    if not len(batches["train"]):
        raise UserError(
            f"data.packing={settings.packing}: no row of data.max_length={settings.max_length} tokens has anything to "
            f"learn; raise it, or set data.packing=best_fit"
        )
    files = _write_packs(folder, batches)
    facts = {
        "format_version": FORMAT_VERSION,
        "store": store.fingerprint,
        "settings": asdict(settings),
        "files": files,
        "lengths": length_report(index["length"], settings.max_length),
        "too_long": 0 if settings.packing == "wrapped" else int((index["length"] > settings.max_length).sum()),
        "pieces_without_labels": unlabelled,
        "tokens_in_rows_without_labels": lost,
        "sources": sources,
    }
    write_json(folder / PLAN, seal(facts))
    return PackPlan(folder)


def _write_packs(folder: Path, batches: dict[str, pa.RecordBatch]) -> dict[str, str]:
    """Their checksums by name; who is killed here leaves no plan beside packs that it is not of."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / PLAN).unlink(missing_ok=True)
    for name, batch in batches.items():
        write_arrow(folder / f"{name}.arrow", batch.schema, [batch])
    return {name: file_digest(folder / f"{name}.arrow") for name in batches}


def _is_made(store: TokenStore, settings: PlanSettings, folder: Path) -> bool:
    """Whether the folder holds this very plan, undamaged."""
    facts = read_object(folder / PLAN) if (folder / PLAN).exists() else None
    if facts is None or not is_sealed(facts):
        return False
    wanted = {"format_version": FORMAT_VERSION, "store": store.fingerprint, "settings": asdict(settings)}
    return all(facts.get(key) == value for key, value in wanted.items()) and all(
        (folder / f"{name}.arrow").exists() and file_digest(folder / f"{name}.arrow") == digest
        for name, digest in facts["files"].items()
    )


def _shares(store: TokenStore, settings: PlanSettings) -> list[SourceShare]:
    """What is asked for of each source of the store."""
    if not settings.sources:
        return [SourceShare()] * len(store.manifest["sources"])
    positions = [source["configured"] for source in store.manifest["sources"]]
    if set(positions) != set(range(len(settings.sources))):
        raise UserError(
            f"data.sources has {len(settings.sources)} items, the token store {store.folder} was made of "
            f"{len(set(positions))} others; run `shardtune prepare` with a new data.store"
        )
    return [settings.sources[position] for position in positions]


def _check_mixture(sources: list[dict[str, Any]], store: TokenStore, settings: PlanSettings) -> None:
    if not any(source["taken_documents"] for source in sources):
        if any(source["validation"] for source in sources) and not any(source["not_taken"] for source in sources):
            by_count = settings.validation_count is not None
            asked = f"count={settings.validation_count}" if by_count else f"fraction={settings.validation_fraction}"
            raise UserError(f"data.validation.{asked} leaves nothing to train on; lower it")
        raise UserError("data.sources: no document is left to train on; raise data.max_length, weights or caps")
    for position in range(len(settings.sources)):
        parts = [
            part
            for part, source in zip(sources, store.manifest["sources"], strict=True)
            if source["configured"] == position
        ]
        if not any(part["taken_documents"] for part in parts):
            counts = {key: sum(part[key] for part in parts) for key in parts[0] if key not in ("name", "taken_tokens")}
            said = ", ".join(f"{count} {key}" for key, count in counts.items() if count or key == "documents")
            raise UserError(
                f"data.sources.{position} ({parts[0]['name']}) gives nothing to train on ({said}); change its weight "
                f"or caps, data.max_length or data.too_long, or remove it"
            )


def _repeated(pieces: Pieces, times: NDArray[np.uint32], digests: NDArray[np.uint64], seed: int) -> Pieces:
    """Every piece as often as its document is taken, in an order that its tokens and the seed decide.

    Pieces of one length go to packs in this order: it mixes sources, and keeps repeats apart.
    """
    of_piece = times[pieces.documents]
    numbers, hashes = [], []
    for round_number in range(int(times.max(initial=0))):
        taken = np.flatnonzero(of_piece > round_number)
        contents = digests[pieces.documents[taken]] + pieces.starts[taken].astype(np.uint64)
        numbers.append(taken)
        hashes.append((keyed_hashes(contents, seed, "order", round_number) >> np.uint64(32)).astype(np.uint32))
    if not numbers:
        return pieces.take(np.zeros(0, np.int64))
    return pieces.take(np.concatenate(numbers)[stable_order(np.concatenate(hashes), 2**32)])


def _pack_batch(store: TokenStore, pieces: Pieces, settings: PlanSettings) -> pa.RecordBatch:
    match settings.packing:
        case "wrapped":
            pieces, packs = wrap(store, pieces, settings.max_length)
        case "none":
            packs = Packs(np.arange(len(pieces)), np.arange(len(pieces) + 1))
        case _:
            packs = pack_documents(pieces.lengths, settings.max_length)
    lengths = pieces.lengths.astype(np.int64)
    tokens = packs.sums(lengths)
    offsets = packs.offsets.astype(np.int32)
    columns = {"documents": pa.ListArray.from_arrays(offsets, pieces.documents[packs.documents])}
    if (pieces.lengths != store.index["length"][pieces.documents]).any():
        for name in ("starts", "lengths"):
            columns[name] = pa.ListArray.from_arrays(offsets, getattr(pieces, name)[packs.documents])
    return pa.record_batch(
        {
            **columns,
            "tokens": tokens.astype(np.int32),
            "trained": packs.sums(pieces.trained).astype(np.int32),
            "weight": packs.sums(pieces.weights),
            "cost": tokens + settings.attention_cost * packs.sums(lengths**2),
        }
    )


def read_plan(folder: Path) -> dict[str, Any]:
    """What `plan.json` says.

    Raises:
        UserError: there is no plan in the folder, it is damaged, or it was made by another version.
    """
    path = folder / PLAN
    if not path.exists():
        raise UserError(f"there is no pack plan in {folder}; run `shardtune plan` with the same configuration")
    facts = read_object(path)
    if facts and facts.get("format_version", FORMAT_VERSION) != FORMAT_VERSION:
        raise UserError(f"{path} has another format; run `shardtune plan` again")
    if not facts or not is_sealed(facts):
        raise UserError(
            f"{path} is damaged; delete it and run `shardtune plan` with the same configuration, which makes it again"
        )
    return facts


class PackPlan:
    """A plan on disk, memory-mapped: any step in constant time.

    Raises:
        UserError: there is no plan in the folder, it is damaged, or it was made by another version.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.facts = read_plan(folder)
        self.settings = PlanSettings.of_json(self.facts["settings"])
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
        packs = np.concatenate([packs, np.full(size - len(packs), NO_PACK)])
        return costliest_first(packs, self.train.cost)

    def size_of_step(self, step: int) -> StepSize:
        """What the ranks get through together in one step."""
        packs = self.packs_of_step(step)
        packs, table = packs[packs != NO_PACK], self.train
        tokens, cost = int(table.tokens[packs].sum()), self.settings.attention_cost
        return StepSize(
            packs=len(packs),
            tokens=tokens,
            trained_tokens=int(table.trained[packs].sum()),
            weight=float(table.weight[packs].sum()),
            pairs=round((float(table.cost[packs].sum()) - tokens) / cost) if cost else 0,
        )

    def micro_batches(self, step: int, rank: int, ranks: int, packs_per_micro_batch: int) -> list[NDArray[np.int64]]:
        """The packs of one rank in a step, one array per micro-batch (without `NO_PACK`; an array may be empty)."""
        rows = share_out(self.packs_of_step(step), ranks, packs_per_micro_batch)[:, :, rank]
        return [row[row != NO_PACK] for row in rows]

    def imbalance(self, ranks: int, packs_per_micro_batch: int, complete_steps: bool = False) -> float:
        """How long ranks wait for the slowest in the first epoch: 1 - mean / max of the cost over ranks.

        Args:
            complete_steps: leave out an incomplete last step, in which ranks may have nothing to do.
        """
        size, order = self.settings.packs_per_step, self._order(0)
        filled = np.concatenate([order, np.full(-len(order) % size, NO_PACK)]).reshape(-1, size)
        steps = costliest_first(filled[: len(order) // size] if complete_steps else filled, self.train.cost)
        return imbalance(self.train.cost, steps, ranks, packs_per_micro_batch)

    def _order_of_epoch(self, epoch: int) -> NDArray[np.int64]:
        return order_of_epoch(self.train.cost, self.settings.packs_per_step, self.settings.seed, epoch)
