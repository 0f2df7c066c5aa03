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
    """The tokens of a row, and which of them are learnt.

    Raises:
        RowError: there are none, or what is beside them does not say which are learnt.
    """
    ids = row.get("input_ids")
    if not isinstance(ids, list) or not all(type(token) is int for token in ids):
        raise RowError("`input_ids` is not a list of token ids")
    if row.get("labels") is not None:
        labels = row["labels"]
        if not isinstance(labels, list):
            raise RowError("`labels` is not a list")
        trained = [label != -100 for label in labels]
        if len(labels) == len(ids) and any(
            label not in (token, -100) for label, token in zip(labels, ids, strict=True)
        ):
            raise RowError("`labels` are not `input_ids` or -100; they must not be shifted")
    else:
        name = next((name for name in _MASK_COLUMNS if row.get(name) is not None), None)
        if name and not isinstance(row[name], list):
            raise RowError(f"`{name}` is not a list")
        trained = [bool(flag) for flag in row[name]] if name else [True] * len(ids)
    if len(trained) != len(ids):
        raise RowError(f"`input_ids` has {len(ids)} tokens, its labels are {len(trained)}")
    return Tokens(ids, trained)
