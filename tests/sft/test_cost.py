"""The default cost of attention is that of an 8B model; a tied output layer computes, an embedding only looks up."""

import pytest
from transformers import AutoConfig

from data_tools.balance import ATTENTION_COST
from sft.config_model import ModelConfig
from sft.cost import attention_cost
from sft.own_code import empty_model


def test_llama_8b_costs_what_plans_assume() -> None:
    config = AutoConfig.for_model(
        "llama",
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        vocab_size=128_256,
    )
    assert attention_cost(empty_model(ModelConfig(config={"architecture": "llama"}), config)) == pytest.approx(
        ATTENTION_COST, rel=0.001
    )


@pytest.mark.parametrize("tied", [True, False])
def test_the_output_layer_counts_once(tied: bool) -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = AutoConfig.for_model("llama", **sizes, vocab_size=400, tie_word_embeddings=tied)
    assert attention_cost(empty_model(ModelConfig(config={"architecture": "llama"}), config)) == pytest.approx(
        2 * 32 / (400 * 32 + 2 * (4 * 32 * 32 + 3 * 32 * 64 + 64) + 32)
    )
