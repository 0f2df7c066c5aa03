"""Operations of a step against a count by torch of what forward and backward really do."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM

from data_tools.plan import StepSize
from sft.flops import flops_of_steps, peak_flops, peak_of_name
from tests.sft.models import tiny_llama


@pytest.mark.parametrize("tied", [True, False])
def test_a_step_has_the_products_that_torch_counts(tied: bool) -> None:
    """One document of 64 tokens, all trained; torch counts the masked half of attention, too."""
    model = tiny_llama(tied)
    model.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as counter:
        model(torch.arange(64)[None]).logits.sum().backward()
    norms = 6 * sum(p.numel() for p in model.parameters() if p.ndim == 1) * 64  # counted here, no products to torch
    pairs = 64 * 64
    attention = 6 * 2 * 32 * pairs
    found = flops_of_steps(model, [StepSize(1, 64, 64, 64.0, pairs)])
    # Nothing needs the gradient of the first layer's input but the embedding: torch and the formula count it both.
    assert found - norms == counter.get_total_flops() - attention


def test_frozen_parameters_have_no_gradient_of_their_own() -> None:
    model = tiny_llama(False)
    size = [StepSize(1, 64, 10, 10.0, 0)]
    trained = flops_of_steps(model, size)
    model.requires_grad_(False)
    assert flops_of_steps(model, size) == pytest.approx(trained * 2 / 3)


def test_a_token_goes_through_some_experts_and_sees_a_window() -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    keys = {**sizes, "num_key_value_heads": 2, "vocab_size": 100, "num_experts_per_tok": 2}
    few, many = (
        AutoModelForCausalLM.from_config(AutoConfig.for_model("mixtral", **keys, num_local_experts=experts))
        for experts in (2, 8)
    )
    size = [StepSize(1, 64, 10, 10.0, 64 * 64)]
    router = 6 * 2 * (8 - 2) * 32 * 64
    assert flops_of_steps(many, size) - flops_of_steps(few, size) == router
    windowed = AutoModelForCausalLM.from_config(
        AutoConfig.for_model("mistral", **sizes, num_key_value_heads=2, vocab_size=100, head_dim=8, sliding_window=16)
    )
    whole = flops_of_steps(windowed, size)
    windowed.config.sliding_window = None
    assert flops_of_steps(windowed, size) - whole == 6 * 32 * 2 * (64 * 64 - 2 * 16 * 64)


def test_only_known_gpus_have_a_peak() -> None:
    assert peak_of_name("NVIDIA H100 80GB HBM3") == 989.4e12
    assert peak_of_name("NVIDIA H100 PCIe") == 756e12
    assert peak_of_name("NVIDIA L40S") == 362e12 and peak_of_name("NVIDIA L4") == 121e12
    assert peak_of_name("NVIDIA A10G") == 70e12 and peak_of_name("NVIDIA A100-SXM4-80GB") == 312e12
    assert peak_of_name("Quadro P400") is None
    assert peak_flops(torch.device("cpu"), torch.bfloat16) is None
