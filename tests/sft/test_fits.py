"""Weights that cannot fit are refused from their shapes, before anything is read."""

import pytest
import torch
from transformers import AutoConfig

from data_tools.errors import UserError
from sft.config_model import ModelConfig
from sft.fits import check_weights_fit, free_memory, weight_bytes
from tests.sft.models import tiny_llama

CPU = torch.device("cpu")


@pytest.mark.parametrize("tied", [True, False])
def test_bytes_are_those_of_the_model(tied: bool) -> None:
    model = tiny_llama(tied)
    of_path = ModelConfig(path="m")
    assert weight_bytes(of_path, model.config, torch.float32) == sum(p.nbytes for p in model.parameters())
    assert weight_bytes(of_path, model.config, torch.bfloat16) == sum(p.nbytes // 2 for p in model.parameters())


def test_four_bits_are_counted_for_linear_layers() -> None:
    config = AutoConfig.for_model("llama", hidden_size=4096, intermediate_size=14336, num_hidden_layers=32)
    quantized = ModelConfig.model_validate({"path": "m", "lora": {}, "quantize": "nf4"})
    whole, small = (weight_bytes(model, config, torch.bfloat16) for model in (ModelConfig(path="m"), quantized))
    assert 0.28 < small / whole < 0.35


def test_a_model_too_large_is_refused() -> None:
    free = free_memory()
    assert free is not None and free > 0
    config = AutoConfig.for_model("llama", hidden_size=16384, intermediate_size=53248, num_hidden_layers=1260)
    with pytest.raises(UserError, match=r"weights of m take .* GB, and this cpu has .* GB free; choose a smaller"):
        check_weights_fit(ModelConfig(path="m"), config, torch.bfloat16, CPU)
    with pytest.raises(UserError, match=r"for each of the 2 ranks of this machine, .* a machine with more memory$"):
        check_weights_fit(ModelConfig(config={"architecture": "llama"}), config, torch.bfloat16, CPU, ranks=2)
    check_weights_fit(ModelConfig(path="m"), tiny_llama(True).config, torch.float32, CPU)


def test_all_ranks_of_a_machine_need_their_own() -> None:
    config = tiny_llama(True).config
    free = 5 * weight_bytes(ModelConfig(path="m"), config, torch.float32) // 2
    check_weights_fit(ModelConfig(path="m"), config, torch.float32, CPU, ranks=2, free=free)
    with pytest.raises(UserError, match=r"for each of the 3 ranks of this machine, .* or set train\.zero\.stage=3"):
        check_weights_fit(ModelConfig(path="m"), config, torch.float32, CPU, ranks=3, free=free)
