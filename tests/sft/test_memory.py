"""The forecast of memory, against what DeepSpeed and torch really keep."""

import contextlib
import gc
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from sft.config import TrainConfig
from sft.config_model import ModelConfig
from sft.engine import start_engine
from sft.layers import forget_activations
from sft.lean import keep_less
from sft.memory import MemoryForecast, forecast_memory, largest_micro_batch
from sft.model import PackedCausalLM
from sft.world import World
from sft.zero import coalesces
from tests.ranks import run_ranks

SHAPE = {
    "vocab_size": 2000,
    "hidden_size": 128,
    "intermediate_size": 352,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
}
CASES: list[tuple[str, dict[str, Any]]] = [
    ("float32", {"zero": {"stage": 0}}),
    ("float32", {"zero": {"stage": 1}}),
    ("float32", {"zero": {"stage": 2}}),
    ("float32", {"zero": {"stage": 2, "coalesce": False}}),
    ("float32", {"zero": {"stage": 3}}),
    ("bfloat16", {"zero": {"stage": 0}}),
    ("bfloat16", {"zero": {"stage": 1}}),
    ("bfloat16", {"zero": {"stage": 1}, "gradient_dtype": "bfloat16"}),
    ("bfloat16", {"zero": {"stage": 2}}),
    ("bfloat16", {"zero": {"stage": 2}, "gradient_dtype": "bfloat16"}),
    ("bfloat16", {"zero": {"stage": 2}, "pure_bfloat16": True}),
    ("bfloat16", {"zero": {"stage": 3}}),
]


IN_PART: tuple[str, dict[str, Any]] = ("bfloat16", {"zero": {"stage": 1}})
"""On one rank this takes a tenth less than is told."""
_kept: list[Any] = []


def living_bytes() -> int:
    """Of all tensors of this process; what shares memory counts once."""
    gc.collect()
    tensors = [value for value in gc.get_objects() if isinstance(value, torch.Tensor)]
    tensors += [value.grad for value in tensors if value.is_leaf and value.grad is not None]  # Python may not know them
    storages = [value.untyped_storage() for value in tensors]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def state_in_optimizer_step(world: World, cases: list[tuple[str, dict[str, Any]]]) -> list[int]:
    """The most bytes of model state when the optimizer begins a step, for each case."""
    return [_measure(world, getattr(torch, dtype), TrainConfig(packs_per_step=4, **train)) for dtype, train in cases]


def _measure(world: World, dtype: torch.dtype, train: TrainConfig) -> int:
    before = living_bytes()
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("qwen3", **SHAPE), dtype=dtype)
    engine = start_engine(PackedCausalLM(model), train, dtype, world)
    optimizer, found = engine.optimizer, list[int]()
    while hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    optimizer.register_step_pre_hook(lambda *_: found.append(living_bytes() - before))
    row = torch.arange(8)
    inputs = (row[None], row[None], torch.tensor([0, 8], dtype=torch.int32), 8, row[:-1], row[1:], None, None)
    one_reduction = coalesces(train, dtype, world.size)
    passes = 4 // world.size
    for _ in range(2):
        with engine.coalesce_grad_reduction() if one_reduction else contextlib.nullcontext():
            for number in range(1, passes + 1):
                engine.backward(engine(*inputs)[0], scale_wrt_gas=False)
                if number < passes and not one_reduction:
                    engine.step()
        engine.step()
    _kept.append(engine)  # were it freed at some time, the next would seem smaller
    return max(found)  # it steps group by group


def forecast(dtype: str, train: dict[str, Any], ranks: int, tokens: int = 8) -> MemoryForecast:
    model = ModelConfig(config={"architecture": "qwen3"})
    shape = AutoConfig.for_model("qwen3", **SHAPE)
    return forecast_memory(
        model, shape, TrainConfig(packs_per_step=4, **train), getattr(torch, dtype), ranks, tokens, tokens - 1
    )


@pytest.mark.parametrize(
    ("ranks", "cases"),
    [
        (2, [CASES[2], CASES[6], CASES[-1]]),
        pytest.param(2, CASES, marks=pytest.mark.slow),
        pytest.param(1, [case for case in CASES if case != IN_PART], marks=pytest.mark.slow),
    ],
)
def test_model_state_is_what_deepspeed_keeps(ranks: int, cases: list[tuple[str, dict[str, Any]]]) -> None:
    measured, *_ = run_ranks(ranks, f"{__name__}:state_in_optimizer_step", cases=cases)
    for (dtype, train), found in zip(cases, measured, strict=True):
        told = forecast(dtype, train, ranks).model_state
        assert told == pytest.approx(found, rel=0.1), f"{ranks} ranks, {dtype}, {train}: {told / found:.2f} of it"


@pytest.mark.parametrize("checkpointing", [False, True, 2])
def test_activations_are_what_the_layers_keep(checkpointing: bool | int) -> None:
    """On a real model of one document, where torch's attention keeps what its kernels do."""
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("qwen3", **SHAPE)).train()
    keep_less(model)
    forget_activations(model, TrainConfig(activation_checkpointing=checkpointing))
    packed = PackedCausalLM(model)
    weights = {parameter.data_ptr() for parameter in model.parameters()}
    row = torch.arange(512)[None]
    kept: dict[int, torch.Tensor] = {}
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: kept.setdefault(tensor.untyped_storage().data_ptr(), tensor), lambda tensor: tensor
    ):
        packed.hidden(row, row, torch.tensor([0, 512], dtype=torch.int32), 512)
    found = sum(tensor.untyped_storage().nbytes() for place, tensor in kept.items() if place not in weights)
    train = {"activation_checkpointing": checkpointing}
    told = forecast("float32", train, 1, 512).activations
    if checkpointing:  # and one layer as a whole while it is made again
        told -= forecast("float32", {}, 1, 512).activations // SHAPE["num_hidden_layers"]
    assert told == pytest.approx(found, rel=0.02)


def test_the_largest_micro_batch_leaves_a_tenth_free() -> None:
    model, shape = ModelConfig(config={"architecture": "qwen3"}), AutoConfig.for_model("qwen3", **SHAPE)
    train = TrainConfig(packs_per_step=24)

    def largest(memory: int) -> int | None:
        return largest_micro_batch(model, shape, train, torch.float32, 2, (4096, 4000), memory)

    def peak(packs: int) -> int:
        return forecast_memory(model, shape, train, torch.float32, 2, 4096 * packs, 4000 * packs).peak

    assert peak(1) < peak(4) < peak(6)
    assert largest(int(peak(1) / 0.9) - 1) is None
    assert largest(int(peak(4) / 0.9) + 2) == 4
    assert largest(int(peak(6) / 0.9) - 1) == 4
    assert largest(10**15) == 12, "all packs of a rank"


def test_adapters_have_little_state() -> None:
    shape = AutoConfig.for_model("qwen3", **SHAPE)
    whole = forecast("bfloat16", {}, 1)
    lora = ModelConfig.model_validate({"path": "somewhere", "lora": {"rank": 4}})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sft.memory.empty_model", lambda *_: _on_meta(shape))
        patch.setattr("sft.fits.empty_model", lambda *_: _on_meta(shape))
        adapters = forecast_memory(lora, shape, TrainConfig(packs_per_step=4), torch.bfloat16, 1, 8, 7)
    assert adapters.optimizer + adapters.gradients < 0.1 * (whole.optimizer + whole.gradients)
    assert whole.parameters < adapters.parameters < 1.1 * whole.parameters


def _on_meta(shape: Any) -> Any:
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(shape)
