"""Answers that models give."""

from types import SimpleNamespace

import torch

from sft.answers import continue_ids
from tests.sft.models import tiny_llama


def test_every_token_is_a_sign_of_life() -> None:
    signs: list[int] = []
    ids = torch.tensor([[5, 6, 7]])
    tokenizer = SimpleNamespace(pad_token_id=0)
    with torch.no_grad():
        new_ids = continue_ids(tiny_llama(True).eval(), tokenizer, ids, [399], 9, alive=lambda: signs.append(1))
    assert len(signs) == len(new_ids) > 1
