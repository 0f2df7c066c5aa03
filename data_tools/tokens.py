"""Rows that are tokenized already."""

from dataclasses import dataclass
from typing import Any

from data_tools.errors import RowError

_MASK_COLUMNS = ("assistant_masks", "completion_mask", "loss_mask")


@dataclass(frozen=True)
class Tokens:
    """A row that is tokenized already."""

    input_ids: list[int]
    trained: list[bool]

    @property
    def size(self) -> int:
        """Bytes, roughly."""
        return 4 * len(self.input_ids)


def read_tokens(row: dict[str, Any]) -> Tokens:
    """The tokens of a row without its padding, and which of them are learnt.

    Raises:
        RowError: there are none, or what is beside them does not say which are learnt.
    """
    ids = row.get("input_ids")
    if not isinstance(ids, list) or not all(type(token) is int for token in ids):
        raise RowError("`input_ids` is not a list of token ids")
    said = {name: _flags(row, name, ids) for name in _MASK_COLUMNS if row.get(name) is not None}
    if row.get("labels") is not None:
        said = {"labels": _labelled(row, ids), **said}
    if row.get("attention_mask") is not None:
        kept = _unpadded(_flags(row, "attention_mask", ids))
        ids, said = ids[kept], {name: flags[kept] for name, flags in said.items()}
    trained = next(iter(said.values()), [True] * len(ids))
    if other := next((name for name, flags in said.items() if flags != trained), None):
        raise RowError(f"`{next(iter(said))}` and `{other}` do not say the same; leave one out")
    return Tokens(ids, trained)


def _column(row: dict[str, Any], name: str, ids: list[int]) -> list[Any]:
    """A column that has a value for every token."""
    values = row[name]
    if not isinstance(values, list):
        raise RowError(f"`{name}` is not a list")
    if len(values) != len(ids):
        raise RowError(f"`input_ids` has {len(ids)} tokens, `{name}` has {len(values)}")
    return values


def _flags(row: dict[str, Any], name: str, ids: list[int]) -> list[bool]:
    values = _column(row, name, ids)
    for value in values:
        if value not in (0, 1):
            raise RowError(f"`{name}` has {value!r}, which is neither 0 nor 1")
    return [bool(value) for value in values]


def _labelled(row: dict[str, Any], ids: list[int]) -> list[bool]:
    labels = _column(row, "labels", ids)
    if any(label not in (token, -100) for label, token in zip(labels, ids, strict=True)):
        raise RowError("`labels` are not `input_ids` or -100; they must not be shifted")
    return [label != -100 for label in labels]


def _unpadded(attended: list[bool]) -> slice:
    """Where the tokens are that are no padding."""
    if True not in attended:
        raise RowError("`attention_mask` has no 1: there is nothing but padding")
    start, end = attended.index(True), len(attended) - attended[::-1].index(True)
    if False in attended[start:end]:
        raise RowError("`attention_mask` has 0 between tokens; only padding before or after them can be left out")
    return slice(start, end)
