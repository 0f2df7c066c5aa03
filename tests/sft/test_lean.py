"""Layers that keep less compute what they computed before."""

import copy
from types import MethodType
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from sft.lean import _norm_forward, keep_less

SHAPE = {
    "vocab_size": 60,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
}


def model_of(kind: str, **sizes: Any) -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**SHAPE, **sizes}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.train()


def replaced(model: nn.Module) -> list[str]:
    forwards = (vars(module).get("forward") for module in model.modules())
    return [forward.__func__.__name__ for forward in forwards if forward is not None]


def kept_bytes(model: Any, row: torch.Tensor) -> int:
    weights = {parameter.data_ptr() for parameter in model.parameters()}
    kept: dict[int, torch.Tensor] = {}
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: kept.setdefault(tensor.untyped_storage().data_ptr(), tensor), lambda tensor: tensor
    ):
        hidden = model.base_model(row).last_hidden_state
    del hidden
    return sum(tensor.untyped_storage().nbytes() for place, tensor in kept.items() if place not in weights)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("kind", "norms", "mlps"),
    [
        ("llama", 5, 2),
        ("mistral", 5, 2),
        ("qwen2", 5, 2),
        ("qwen3", 9, 2),
        ("smollm3", 5, 2),
        ("olmo2", 0, 2),  # its norm multiplies before it rounds
        ("gemma2", 0, 0),  # (1 + w) and gelu
        ("phi3", 5, 0),  # gate and up in one
        ("gpt2", 0, 0),
    ],
)
def test_the_same_results_of_less(kind: str, norms: int, mlps: int, dtype: torch.dtype) -> None:
    model = model_of(kind).to(dtype)
    lean = copy.deepcopy(model)
    keep_less(lean)
    names = replaced(lean)
    assert (names.count("_norm_forward"), names.count("_whole_mlp_forward")) == (norms, mlps)
    row = torch.randint(1, 60, (1, 48), generator=torch.Generator().manual_seed(1))
    logits = []
    for each in (model, lean):
        torch.manual_seed(0)  # of dropout
        logits.append(each(row).logits)
    assert torch.equal(*logits)
    weight = torch.randn(logits[0].shape, generator=torch.Generator().manual_seed(2)).to(dtype)
    for result in logits:
        (result * weight).sum().backward()
    bound = 2e-6 if dtype is torch.float32 else 2e-2
    for (name, one), two in zip(model.named_parameters(), lean.parameters(), strict=True):
        assert one.grad is not None and two.grad is not None
        assert (one.grad - two.grad).norm() <= bound * one.grad.norm(), name
    if norms and mlps:
        assert kept_bytes(lean, row) < 0.75 * kept_bytes(model, row)


def test_gradients_are_those_of_the_formula() -> None:
    model = model_of("llama")
    norm, mlp = model.get_submodule("model.norm").double(), model.get_submodule("model.layers.0.mlp").double()
    keep_less(norm)
    keep_less(mlp)
    x = torch.randn(3, 32, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(mlp, x)
    # The norm computes in float32, whatever comes in.
    assert torch.autograd.gradcheck(norm, x, eps=1e-3, atol=1e-3, nondet_tol=1e-6)


def test_beside_an_adapter_the_last_layer_stays_its_own() -> None:
    model = model_of("llama")
    adapted = get_peft_model(model, LoraConfig(target_modules=["down_proj"], init_lora_weights=False))
    row = torch.randint(1, 60, (1, 48), generator=torch.Generator().manual_seed(1))
    before = adapted(row).logits
    keep_less(adapted)
    assert replaced(adapted).count("_mlp_forward") == 2 and "_down_forward" not in replaced(adapted)
    assert torch.equal(adapted(row).logits, before)


def test_under_autocast_it_is_what_it_was() -> None:
    model = model_of("llama")
    lean = copy.deepcopy(model)
    keep_less(lean)
    row = torch.randint(1, 60, (1, 48), generator=torch.Generator().manual_seed(1))
    for each in (model, lean):
        with torch.autocast("cpu", torch.bfloat16):
            loss = each(row, labels=row).loss
        loss.backward()
    for (name, one), two in zip(model.named_parameters(), lean.parameters(), strict=True):
        assert one.grad is not None and two.grad is not None and two.grad.dtype is torch.float32
        assert (one.grad - two.grad).norm() <= 2e-2 * one.grad.norm(), name


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(16))
        self.variance_epsilon = 1e-6

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _norm_forward(self, x) * 1.0000001


class Asks(Scaled):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _norm_forward(self, x) * self.weight.sum() if self.training else x


def test_what_is_nearly_the_same_stays() -> None:
    model = nn.Sequential(Scaled(), Asks())
    keep_less(model)
    assert replaced(model) == []


def test_what_somebody_replaced_stays() -> None:
    norm = model_of("llama").get_submodule("model.norm")
    own = norm.forward = MethodType(_norm_forward, norm)
    keep_less(norm)
    assert norm.forward is own


def test_random_numbers_stay_as_they_are() -> None:
    model = model_of("llama")
    torch.manual_seed(7)
    before = torch.get_rng_state()
    keep_less(model)
    assert torch.equal(before, torch.get_rng_state())
