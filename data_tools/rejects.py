"""Rows that did not become documents: a file for each unit while a store is made, one for all when it is finished.

There may be as many as rows, so they are never held in memory: written as they come, copied, read line by line.
"""

import json
import re
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, Literal

from data_tools.files import shown_path
from data_tools.mirror import Mirror
from data_tools.store import atomically

REJECTS = "rejects.jsonl"
OTHERS = "other reasons"

Kind = Literal["rejected", "dropped"]

_EXAMPLES = 3
_TOLD = 5
_MOST_REASONS = 1000
"""Told apart; a reason may quote the row, and then there are as many as rows."""
_ENCODING: dict[str, Any] = {"encoding": "utf-8", "errors": "backslashreplace"}
"""A reason may quote half of a surrogate pair: its escape is the same in JSON."""


@dataclass(frozen=True)
class Reject:
    """A row that did not become a document."""

    file: str
    row: int
    kind: Kind
    """`rejected` rows are not what they should be; `dropped` rows are fine, but leave nothing to train on."""
    reason: str


@dataclass(frozen=True)
class RejectReason:
    """Rows that were refused for the same reason, numbers in it aside."""

    reason: str
    """With `…` for numbers that are not the same in all."""
    kind: str
    count: int
    examples: list[dict[str, Any]]
    """The first lines of rejects.jsonl that say so."""

    def __str__(self) -> str:
        """The reason and a row that has it: with its own numbers, where the reason is without."""
        example = self.examples[0]
        own = "" if example["reason"] == self.reason else f": {example['reason']}"
        return f"{self.reason} (row {example['row']:,} of {shown_path(example['file'])}{own})"


def unit_rejects(unit: int) -> str:
    """The rejects of a unit, below the store's folder; there is no such file where there are none."""
    return f"units/{unit:05d}.rejects.jsonl"


class UnitRejects:
    """Takes the rejects of one unit, and counts them."""

    def __init__(self, file: IO[str]) -> None:
        self.counts: Counter[Kind] = Counter()
        self._file = file

    def append(self, reject: Reject) -> None:
        """Write one line."""
        self.counts[reject.kind] += 1
        self._file.write(json.dumps(asdict(reject), ensure_ascii=False) + "\n")


@contextmanager
def writing_rejects(path: Path) -> Iterator[UnitRejects]:
    """The file of a unit's rejects is there, whole, when the context ends; none where there are none."""
    with atomically(path) as temporary, open(temporary, "w", **_ENCODING) as file:
        rejects = UnitRejects(file)
        yield rejects
    if not rejects.counts:
        path.unlink(missing_ok=True)  # another actor may be at the same unit


def gather_rejects(store: Mirror, parts: Iterable[Path]) -> Path:
    """Write the rejects of some units, one file after the other, to the store's `rejects.jsonl`."""
    path = store.folder / REJECTS
    with atomically(path) as temporary, open(temporary, "wb") as whole:
        for path_of_unit in parts:
            with open(path_of_unit, "rb") as part:
                shutil.copyfileobj(part, whole)
    store.push(REJECTS)
    return path


def reject_reasons(path: Path) -> list[RejectReason]:
    """The reasons in a file of rejects, the most frequent first."""
    counts: Counter[tuple[str, str]] = Counter()
    varied: set[tuple[str, str]] = set()
    examples: dict[tuple[str, str], list[dict[str, Any]]] = {}
    with open(path, encoding="utf-8") as lines:
        for line in lines:
            reject = json.loads(line)
            key = (reject["kind"], re.sub(r"\d+", "…", reject["reason"]))
            if key not in counts and len(counts) >= _MOST_REASONS:
                key = (reject["kind"], OTHERS)
            counts[key] += 1
            seen = examples.setdefault(key, [])
            if len(seen) < _EXAMPLES:
                seen.append(reject)
            if reject["reason"] != seen[0]["reason"]:
                varied.add(key)
    return [
        RejectReason(key[1] if key in varied else examples[key][0]["reason"], key[0], count, examples[key])
        for key, count in counts.most_common()
    ]


def top_reasons(reasons: list[RejectReason]) -> str:
    """The three most frequent reasons in one line, with a row that has each."""
    return _printable("; ".join(f"{reason.count:,} × {reason}" for reason in reasons[:3]))


def reason_lines(reasons: list[RejectReason]) -> list[str]:
    """The most frequent reasons, one a line, with a row that has each."""
    lines = [_printable(f"{reason.count:,} {reason.kind}: {reason}") for reason in reasons[:_TOLD]]
    if more := len(reasons[_TOLD:]):
        lines.append(f"and {more:,} rarer reason{'s' * (more > 1)}; see {REJECTS}")
    return lines


def _printable(text: str) -> str:
    return text.encode(**_ENCODING).decode()
