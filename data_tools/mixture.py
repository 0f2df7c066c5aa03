"""Weights, caps and held-out documents → how often training takes each document of the store.

    available   documents that fit, without duplicates where those are unwanted
    validation  of these, the ones whose tokens hash lowest: no weight or seed moves a document to the other side
    training    of the rest, each source as often as its weight says, up to its caps

A source's documents stand in an order that only their tokens and the seed decide. Weight 0.5 takes the first half of
them; weight 2.5 all of them twice and the first half once more. Other sources never change what is taken of one.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_tools.hashing import keyed_hashes
from data_tools.lengths import Index
from data_tools.plan_settings import PlanSettings, SourceShare


@dataclass(frozen=True)
class Mixture:
    """The place of every document of the store; all arrays are [documents]."""

    times: NDArray[np.uint32]
    """How often training takes it."""
    validation: NDArray[np.bool_]
    left_out: dict[str, NDArray[np.bool_]]
    """The others, by reason: `too_long`, `no_labels` (in the part that fits), `duplicate`, `not_taken`."""


def mix(index: Index, tokens: NDArray[np.int64], shares: list[SourceShare], settings: PlanSettings) -> Mixture:
    """Decide about every document.

    Args:
        tokens: of each document, as far as packs may hold it; 0 where they may not.
        shares: one per source of the store's manifest.
    """
    available = tokens > 0
    too_long = ~available & (index["length"] > settings.max_length) & (settings.too_long == "drop")
    left_out = {"too_long": too_long, "no_labels": ~available & ~too_long}
    left_out["duplicate"] = available & (repeats(index["digest"]) if settings.deduplicate else False)
    available &= ~left_out["duplicate"]
    held_out = available & _held_out(index["conversation"], available, settings)
    times = np.zeros(len(tokens), np.uint32)
    for source, documents in _by_source(index["source"], available & ~held_out):
        if shares[source] == SourceShare():
            times[documents] = 1
            continue
        hashes = keyed_hashes(index["digest"][documents], settings.seed, "mixture")
        times[documents] = _take(tokens[documents], hashes, shares[source], settings.weights_by)
    left_out["not_taken"] = available & ~held_out & (times == 0)
    return Mixture(times, held_out, left_out)


def repeats(digests: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Documents whose tokens are those of an earlier one."""
    order = np.argsort(digests, kind="stable")
    found = np.zeros(len(digests), np.bool_)
    found[order[1:]] = digests[order[1:]] == digests[order[:-1]]
    return found


def _held_out(digests: NDArray[np.uint64], available: NDArray[np.bool_], settings: PlanSettings) -> NDArray[np.bool_]:
    """The lowest digests of conversations, up to a border that no group of equal ones lies across.

    Documents of one conversation (`split_turns`) share their turns: all are held out, or none.
    """
    if settings.validation_count is None:
        return digests < np.uint64(settings.validation_fraction * 2.0**64)
    lowest = np.sort(digests[available])[: settings.validation_count]
    return digests <= lowest[-1] if len(lowest) else np.zeros_like(available)


def _by_source(sources: NDArray[np.int16], chosen: NDArray[np.bool_]) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Each source and its chosen documents."""
    documents = np.flatnonzero(chosen)
    documents = documents[np.argsort(sources[documents], kind="stable")]
    found, starts = np.unique(sources[documents], return_index=True)
    yield from zip(found.tolist(), np.split(documents, starts[1:]), strict=True) if len(documents) else ()


def _take(
    tokens: NDArray[np.int64], hashes: NDArray[np.uint64], share: SourceShare, weights_by: str
) -> NDArray[np.uint32]:
    """How often each document of one source is taken."""
    order = np.argsort(hashes, kind="stable")
    running = np.cumsum(tokens[order])

    def within(limit: int) -> int:
        """Documents of the order, gone through again and again, that stay within so many tokens."""
        rounds, rest = divmod(limit, int(running[-1]))
        return rounds * len(tokens) + int(np.searchsorted(running, rest, side="right"))

    by_rows = weights_by == "rows"
    taken = int(round(len(tokens) * share.weight, 6)) if by_rows else within(int(int(running[-1]) * share.weight))
    if share.max_rows is not None:
        taken = min(taken, share.max_rows)
    if share.max_tokens is not None:
        taken = min(taken, within(share.max_tokens))
    rounds, rest = divmod(taken, len(tokens))
    times = np.full(len(tokens), rounds, np.uint32)
    times[order[:rest]] += 1
    return times


def source_facts(index: Index, tokens: NDArray[np.int64], mixture: Mixture, names: list[str]) -> list[dict[str, Any]]:
    """What became of every source: documents and tokens taken (repeats included), held out, and left out by reason."""

    def totals(values: NDArray[Any]) -> list[int]:
        counts: list[int] = np.bincount(index["source"], values, len(names)).astype(np.int64).tolist()
        return counts

    columns = {
        "documents": totals(np.ones(len(tokens))),
        "taken_documents": totals(mixture.times),
        "taken_tokens": totals(mixture.times * tokens),
        "validation": totals(mixture.validation),
        **{reason: totals(documents) for reason, documents in mixture.left_out.items()},
    }
    rows = zip(names, *columns.values(), strict=True)
    return [dict(zip(("name", *columns), row, strict=True)) for row in rows]
