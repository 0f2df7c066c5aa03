"""Token store → what people look at: totals of each source, lengths, reasons of rejects, documents with their mask."""

import difflib
import unicodedata
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_tools.decode import Piece, TokenDecoder
from data_tools.errors import UserError
from data_tools.mixture import repeats
from data_tools.rejects import REJECTS, RejectReason, reject_reasons
from data_tools.store import TokenStore
from data_tools.verified import check_newer

_COUNTED = ("rows_in", "rows_out", "rejected", "dropped", "tokens", "trained_tokens")


@dataclass(frozen=True)
class SourceFacts:
    """What became of a source, or of all together."""

    name: str
    rows_in: int
    rows_out: int
    rejected: int
    dropped: int
    documents: int
    tokens: int
    trained_tokens: int
    format: str | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def trained_share(self) -> float | None:
        """Trained tokens of all tokens; None: there are none."""
        return self.trained_tokens / self.tokens if self.tokens else None

    @property
    def mean_length(self) -> float | None:
        """Tokens of a document; None: there are none."""
        return self.tokens / self.documents if self.documents else None


@dataclass(frozen=True)
class LengthBin:
    """How many documents have `first` to `last` tokens, both included."""

    first: int
    last: int
    documents: int
    share_up_to: float
    """Share of documents that have at most `last` tokens."""


@dataclass(frozen=True)
class Run:
    """Neighbouring tokens that are all trained with one weight, or all not trained."""

    pieces: list[Piece]
    trained: bool
    weight: float

    @property
    def text(self) -> str:
        """Its characters as they are: control characters are not escaped."""
        return "".join(piece.text for piece in self.pieces)


@dataclass(frozen=True)
class ShownDocument:
    """One document, decoded."""

    number: int
    """In store order, from 0."""
    source: str
    row: int
    tokens: int
    trained_tokens: int
    runs: list[Run]

    @property
    def has_weights(self) -> bool:
        """Whether a trained token has another weight than 1."""
        return any(run.weight != 1 for run in self.runs)

    def as_json(self) -> dict[str, Any]:
        """Facts, `segments` as [text, trained], and `weights` of the trained segments where one is not 1."""
        facts = {key: getattr(self, key) for key in ("number", "source", "row", "tokens", "trained_tokens")}
        return {
            **facts,
            "segments": [[run.text, run.trained] for run in self.runs],
            **({"weights": [run.weight for run in self.runs if run.trained]} if self.has_weights else {}),
        }


@dataclass(frozen=True)
class Inspection:
    """Everything that is shown of a store, or of one of its sources."""

    store: TokenStore
    source: str | None
    sources: list[SourceFacts]
    totals: SourceFacts
    lengths: NDArray[np.int32]
    """[documents]"""
    duplicates: int
    """Of the documents, those whose tokens are those of an earlier one of the whole store."""
    rejects: list[RejectReason]
    """Of the whole store, most frequent first."""
    documents: list[ShownDocument]

    @property
    def duplicates_told(self) -> str:
        """The duplicates in one line; empty where there are none."""
        return tell_duplicates(self.duplicates, len(self.lengths)) if self.duplicates else ""

    @property
    def proofs(self) -> dict[str, dict[str, Any]]:
        """What `prepare` proved about the masks: name → checked, of, text, and for those that say
        nothing here `not_applicable`; empty for stores that do not say."""
        return dict(self.store.manifest.get("proofs", {}))

    def as_json(self) -> dict[str, Any]:
        """The facts as plain values."""
        return {
            "store": str(self.store.folder),
            "fingerprint": self.store.fingerprint,
            "sources": [_source_json(source) for source in self.sources],
            "totals": _source_json(self.totals),
            "lengths": [asdict(bin) for bin in length_bins(self.lengths)],
            "duplicates": self.duplicates,
            **({"proofs": self.proofs} if self.proofs else {}),
            "rejects": [asdict(reason) for reason in self.rejects],
            "documents": [document.as_json() for document in self.documents],
        }


def tell_duplicates(duplicates: int, documents: int) -> str:
    """How many documents are there twice, and what to do about it."""
    return (
        f"{duplicates:,} of {documents:,} documents ({duplicates / documents:.1%}) repeat an earlier one exactly; "
        f"data.deduplicate=true leaves them out of the plan"
    )


def _source_json(source: SourceFacts) -> dict[str, Any]:
    facts = {key: value for key, value in asdict(source).items() if value not in (None, [])}
    return {**facts, "trained_share": source.trained_share, "mean_length": source.mean_length}


def inspect_store(store: TokenStore, source: str | None, count: int) -> Inspection:
    """Read what is shown of a store.

    Args:
        store: a finished one.
        source: the name of the only source to show; None: all.
        count: documents to decode, spread evenly over the store or the source.

    Raises:
        UserError: there is no such source, `count` is below 0, or the store is not what was written.
    """
    if count < 0:
        raise UserError(f"--n {count}: give the number of documents to show, or 0 for the totals only")
    check_newer(store)
    numbers = _source_numbers(store, source)
    chosen = np.flatnonzero(np.isin(store.index["source"], numbers)) if source is not None else np.arange(len(store))
    per_source = np.bincount(store.index["source"], minlength=len(store.manifest["sources"]))
    sources = [_source_facts(store.manifest["sources"][number], int(per_source[number])) for number in numbers]
    return Inspection(
        store=store,
        source=source,
        sources=sources,
        totals=_together(sources),
        lengths=store.index["length"][chosen] if source is not None else store.index["length"],
        duplicates=int(repeats(store.index["digest"])[chosen].sum()),
        rejects=reject_reasons(store.file(REJECTS)),
        documents=_documents(store, [int(chosen[place]) for place in spread(len(chosen), count)]),
    )


def _source_numbers(store: TokenStore, name: str | None) -> list[int]:
    names = [source["name"] for source in store.manifest["sources"]]
    found = [number for number, known in enumerate(names) if name in (None, known)]
    if not found:
        near = difflib.get_close_matches(str(name), names, n=1)
        hint = f"did you mean {near[0]}?" if near else "choose one"
        raise UserError(f"{store.folder} has no source {name}; {hint} (its sources: {', '.join(names)})")
    return found


def _source_facts(source: dict[str, Any], documents: int) -> SourceFacts:
    counts = {key: int(source[key]) for key in _COUNTED}
    notes = source.get("notes") or []
    if isinstance(notes, dict):
        notes = [f"{note}: {value}" for note, value in notes.items()]
    return SourceFacts(
        name=source["name"],
        **counts,
        documents=documents,
        format=source.get("format"),
        notes=[notes] if isinstance(notes, str) else [str(note) for note in notes],
    )


def _together(sources: list[SourceFacts]) -> SourceFacts:
    return SourceFacts(
        name="together",
        **{key: sum(getattr(source, key) for source in sources) for key in (*_COUNTED, "documents")},
    )


def spread(length: int, count: int) -> list[int]:
    """`count` places out of `length`, the middle of each of `count` equal parts; all of them where there are fewer.

    >>> spread(100, 4)
    [12, 37, 62, 87]
    """
    count = min(length, count)
    return [(2 * number + 1) * length // (2 * count) for number in range(count)]


def length_bins(lengths: NDArray[np.int32]) -> list[LengthBin]:
    """Documents by length, each bin twice as wide as the one before: 1,025 to 2,048 is what 2,048 adds to 1,024."""
    if not len(lengths):
        return []
    powers = np.ceil(np.log2(lengths)).astype(np.int64)
    counts = np.bincount(powers)
    shares = np.cumsum(counts) / len(lengths)
    return [
        LengthBin(2**power // 2 + 1, 2**power, int(counts[power]), float(shares[power]))
        for power in range(int(powers.min()), len(counts))
    ]


def _documents(store: TokenStore, numbers: list[int]) -> list[ShownDocument]:
    for shard in sorted({store.shard_of(number) for number in numbers}):
        store.check(shard)  # what is shown of it must be what was written
    decoder = TokenDecoder(store.folder / "tokenizer")
    return [_document(store, number, decoder) for number in numbers]


def _document(store: TokenStore, number: int, decoder: TokenDecoder) -> ShownDocument:
    document = store.document(number)
    source, row = store.place(number)
    borders = np.concatenate([[0], np.cumsum(document.mask_runs)]).tolist()
    runs = []
    for run, (start, end) in enumerate(pairwise(borders)):
        trained = run % 2 == 1
        weight = 1.0 if document.weights is None or not trained else round(float(document.weights[run // 2]), 6)
        if end > start:
            runs.append(Run(decoder.pieces(document.input_ids[start:end].tolist()), trained, weight))
    return ShownDocument(
        number=number,
        source=store.manifest["sources"][source]["name"],
        row=row,
        tokens=len(document.input_ids),
        trained_tokens=int(store.index["trained"][number]),
        runs=runs,
    )


def visible(text: str) -> str:
    """Text that does nothing to a terminal or a page: control and format characters are written as escapes.

    Line breaks and tabs stay; so do the joiners that emoji and several scripts are written with.

    >>> visible("a\\x1b[31mb")
    'a\\\\x1b[31mb'
    """
    return text if text.isprintable() else "".join(map(_visible, text))


def _visible(char: str) -> str:
    shown = char in "\n\t\u200c\u200d" or unicodedata.category(char) not in ("Cc", "Cf", "Cs", "Zl", "Zp")
    return char if shown else char.encode("unicode_escape").decode()
