"""Rows that are tokenized already: what is learnt of them, and what is refused."""

from typing import Any

import pytest

from data_tools.errors import RowError
from data_tools.tokens import Tokens, read_tokens

IDS = [5, 6, 7, 8]
SOME = [False, True, True, False]


@pytest.mark.parametrize("mask", [[0, 1, 1, 0], SOME, [0.0, 1.0, 1.0, 0.0]])
@pytest.mark.parametrize("name", ["assistant_masks", "completion_mask", "loss_mask"])
def test_masks_and_labels_say_what_is_learnt(name: str, mask: list[Any]) -> None:
    assert read_tokens({"input_ids": IDS, name: mask}) == Tokens(IDS, SOME)
    assert read_tokens({"input_ids": IDS, "labels": [-100, 6, 7, -100]}) == Tokens(IDS, SOME)
    assert read_tokens({"input_ids": IDS, "labels": None, name: None}) == Tokens(IDS, [True] * 4)


@pytest.mark.parametrize(
    ("attention", "start", "end"),
    [([1, 1, 1, 1], 0, 4), ([1, 1, 1, 0], 0, 3), ([0, 0, 1, 1], 2, 4), ([False, True, True, False], 1, 3)],
)
def test_padding_is_no_part_of_the_document(attention: list[Any], start: int, end: int) -> None:
    row = {"input_ids": IDS, "attention_mask": attention}
    assert read_tokens(row) == Tokens(IDS[start:end], [True] * (end - start))
    assert read_tokens({**row, "loss_mask": SOME}) == Tokens(IDS[start:end], SOME[start:end])
    assert read_tokens({**row, "labels": IDS}) == Tokens(IDS[start:end], [True] * (end - start))


def test_several_masks_have_to_agree() -> None:
    row = {"input_ids": IDS, "labels": [-100, 6, 7, -100], "loss_mask": SOME}
    assert read_tokens(row) == Tokens(IDS, SOME)
    with pytest.raises(RowError, match="`labels` and `completion_mask` do not say the same"):
        read_tokens({**row, "completion_mask": [0, 0, 1, 1]})
    padded = {**row, "completion_mask": [0, 1, 1, 1], "attention_mask": [1, 1, 1, 0]}
    assert read_tokens(padded) == Tokens(IDS[:3], SOME[:3])  # what masks say of padding does not matter


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"input_ids": "5 6"}, "`input_ids` is not a list of token ids"),
        ({"input_ids": [5, True]}, "`input_ids` is not a list of token ids"),
        ({"labels": 5}, "`labels` is not a list"),
        ({"labels": [6, 7, 8, -100]}, "`labels` are not `input_ids` or -100; they must not be shifted"),
        ({"labels": [5, 6, 7, -1]}, "`labels` are not `input_ids` or -100"),
        ({"labels": IDS[:3]}, "`input_ids` has 4 tokens, `labels` has 3"),
        ({"loss_mask": [1]}, "`input_ids` has 4 tokens, `loss_mask` has 1"),
        ({"loss_mask": {}}, "`loss_mask` is not a list"),
        ({"assistant_masks": [0, 1, 2, 0]}, "`assistant_masks` has 2, which is neither 0 nor 1"),
        ({"loss_mask": [0, 0.5, 1, 0]}, "`loss_mask` has 0.5, which is neither 0 nor 1"),
        ({"completion_mask": [0, None, 1, 0]}, "`completion_mask` has None, which is neither 0 nor 1"),
        ({"completion_mask": [0, "1", 1, 0]}, "`completion_mask` has '1', which is neither 0 nor 1"),
        ({"completion_mask": [0, [], 1, 0]}, "which is neither 0 nor 1"),
        ({"attention_mask": [1, 2, 1, 1]}, "`attention_mask` has 2, which is neither 0 nor 1"),
        ({"attention_mask": [1, 1]}, "`input_ids` has 4 tokens, `attention_mask` has 2"),
        ({"attention_mask": [1, 0, 1, 1]}, "`attention_mask` has 0 between tokens"),
        ({"attention_mask": [0, 0, 0, 0]}, "`attention_mask` has no 1"),
    ],
)
def test_other_rows_are_refused_with_a_reason(row: dict[str, Any], reason: str) -> None:
    with pytest.raises(RowError, match=reason):
        read_tokens({"input_ids": IDS, **row})
