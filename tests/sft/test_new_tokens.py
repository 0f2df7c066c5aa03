"""Rows for new tokens are the mean of the known ones, and nothing else moves."""

import copy

import pytest
import torch

from sft.new_tokens import add_rows
from tests.sft.models import tiny_llama


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("rows", "known"), [(400, 400), (400, 390), (500, 400)])
def test_new_rows_are_the_mean_of_the_known_ones(tied: bool, rows: int, known: int) -> None:
    """The model has as many rows as are known, too few for the new ones and others, or padding for all of them."""
    model = tiny_llama(tied, rows)
    before = copy.deepcopy(model)
    add_rows(model, known + 20, 20)
    assert model.config.vocab_size == max(rows, known + 20)
    layers = [(model.get_input_embeddings(), before.get_input_embeddings())]
    layers.append((model.get_output_embeddings(), before.get_output_embeddings()))
    for now, was in layers:
        assert now.weight.shape[0] == model.config.vocab_size
        assert torch.equal(now.weight[:known], was.weight[:known])
        assert torch.equal(now.weight[known + 20 :], was.weight[known + 20 :])
        torch.testing.assert_close(now.weight[known : known + 20], was.weight[:known].mean(0).expand(20, -1))
    assert (layers[0][0].weight is layers[1][0].weight) == tied
    ids = torch.arange(9)[None]
    torch.testing.assert_close(model(ids).logits[..., :known], before(ids).logits[..., :known])


def test_a_model_without_new_tokens_stays_what_it_is() -> None:
    model = tiny_llama(tied=True)
    before = copy.deepcopy(model.state_dict())
    add_rows(model, 380, 0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
