"""Which parameters an optimizer updates, and how."""

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from data_tools.errors import UserError
from sft.config import TrainConfig
from sft.optimizers import check_muon, make_optimizer, parameter_groups
from tests.sft.models import tiny_llama


def test_matrices_are_decayed_norms_are_not_and_frozen_ones_are_left_out() -> None:
    model = tiny_llama(tied=False)
    model.model.embed_tokens.weight.requires_grad_(False)
    decayed, others = parameter_groups(model, 0.1)
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.1, 0.0)
    assert all(parameter.ndim == 2 for parameter in decayed["params"])
    assert len(others["params"]) == 5, "two norms a layer, and the last"
    assert len(decayed["params"]) == 15
    assert not any(parameter is model.model.embed_tokens.weight for parameter in decayed["params"])


def test_a_part_of_a_matrix_is_decayed_as_the_matrix() -> None:
    model = torch.nn.Linear(3, 2)
    model.weight.ds_shape = model.weight.shape  # type: ignore[attr-defined]
    model.weight.data = torch.zeros(3)  # as ZeRO-3 leaves it
    decayed, _ = parameter_groups(model, 0.1)
    assert decayed["params"] == [model.weight]


def test_adamw_has_the_settings() -> None:
    train = TrainConfig.model_validate({"betas": [0.8, 0.9], "eps": 1e-6, "weight_decay": 0.1})
    optimizer = make_optimizer(parameter_groups(tiny_llama(True), 0.1), train)
    assert isinstance(optimizer, torch.optim.AdamW)
    assert optimizer.defaults["betas"] == (0.8, 0.9)
    assert optimizer.defaults["eps"] == 1e-6


def test_states_of_8_bits_need_bitsandbytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(UserError, match="needs bitsandbytes"):
        make_optimizer([], TrainConfig(optimizer="adamw_8bit"))


def test_embeddings_whose_names_deepspeed_does_not_know_are_no_matrices_for_muon() -> None:
    muon = TrainConfig(optimizer="muon", max_grad_norm=None)
    check_muon(tiny_llama(True), muon)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=40, n_positions=8, n_embd=8, n_layer=1, n_head=2))
    check_muon(model, TrainConfig())
    with pytest.raises(UserError, match=r"DeepSpeed would take transformer\.wte, embedding or output layer, for"):
        check_muon(model, muon)
    model.requires_grad_(False)
    check_muon(model, muon)
