"""Layers that forget their activations: the same losses and gradients, by more passes."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from data_tools.errors import UserError
from data_tools.plan import PackPlan
from data_tools.store import TokenStore
from sft.config import TrainConfig
from sft.layers import check_compiler, check_liger, compile_layers, forget_activations
from sft.lean import keep_less
from sft.world import World
from tests.ranks import run_ranks
from tests.sft.models import tiny_llama


def steps(world: World, store: str, plan: str) -> dict[str, dict[str, Any]]:
    """By ZeRO stage and setting: loss and norm of two steps with dropout, and how often the first layers ran."""
    report: dict[str, dict[str, Any]] = {}
    for stage in (0, 2, 3):
        report[str(stage)] = {}
        for setting in (False, True, 2):
            model = tiny_llama(True)
            calls = [0, 0]
            for number, layer in enumerate(model.model.layers):
                layer.self_attn.attention_dropout = 0.1
                layer.mlp.register_forward_pre_hook(partial(count, calls, number))
            train = settings(stage, activation_checkpointing=setting)
            keep_less(model)  # as a run does
            forget_activations(model, train)
            seen = two_steps(model, train, world, store, plan)
            report[str(stage)][str(setting)] = {"seen": [value.hex() for value in seen], "calls": calls}
    return report


def compiled_steps(world: World, store: str, plan: str) -> dict[str, dict[str, Any]]:
    """By ZeRO stage: loss and norm of two steps without and with compiled layers, and how much was compiled."""
    from torch._dynamo.utils import counters

    report: dict[str, dict[str, Any]] = {}
    for stage in (0, 3):
        report[str(stage)] = {}
        for compile in (False, True):
            counters.clear()
            model = tiny_llama(True)
            train = settings(stage, compile=compile, activation_checkpointing=compile and stage == 3)
            forget_activations(model, train)
            compile_layers(model, train)
            seen = two_steps(model, train, world, store, plan)
            programs = counters["stats"]["unique_graphs"]
            report[str(stage)][str(compile)] = {"seen": seen, "programs": programs}
    return report


def settings(stage: int, **others: Any) -> TrainConfig:
    return TrainConfig.model_validate({"packs_per_step": 6, "zero": {"stage": stage}, **others})


def two_steps(model: LlamaForCausalLM, train: TrainConfig, world: World, store: str, plan: str) -> list[float]:
    """Loss and norm of the gradient of each."""
    from sft.batches import make_batch
    from sft.clock import Clock
    from sft.engine import optimizer_step, start_engine
    from sft.model import PackedCausalLM

    tokens, packs = TokenStore(Path(store)), PackPlan(Path(plan))
    engine = start_engine(PackedCausalLM(model), train, torch.float32, world)
    torch.manual_seed(world.rank)
    seen = []
    for step in range(2):
        mine = packs.micro_batches(step, world.rank, world.size, 1)
        batches = [make_batch(tokens, packs.train, micro_batch) for micro_batch in mine]
        result = optimizer_step(engine, batches, packs.size_of_step(step).weight, 1e-3, world, Clock())
        seen += [float(result.loss_sum), float(result.gradient_norm)]
    return seen


def count(calls: list[int], number: int, *_: Any) -> None:
    calls[number] += 1


def test_what_is_computed_again_is_the_same_to_the_last_bit(folders: dict[str, str]) -> None:
    for report in run_ranks(2, "tests.sft.test_layers:steps", **folders):
        for stage in report.values():
            once = stage["False"]["calls"][0]
            assert stage["False"]["calls"] == [once, once]
            assert stage["True"]["calls"] == [2 * once, 2 * once]
            assert stage["2"]["calls"] == [2 * once, once]
            assert stage["True"]["seen"] == stage["2"]["seen"] == stage["False"]["seen"]


def test_a_model_that_cannot_is_refused() -> None:
    model = tiny_llama(True)
    model.supports_gradient_checkpointing = False
    with pytest.raises(UserError, match=r"LlamaForCausalLM does not support .*; leave it out"):
        forget_activations(model, TrainConfig(activation_checkpointing=True))


@pytest.mark.slow
def test_compiled_layers_compute_the_same(folders: dict[str, str]) -> None:
    for report in run_ranks(2, "tests.sft.test_layers:compiled_steps", **folders):
        for stage in report.values():
            assert stage["True"]["programs"] > 0 == stage["False"]["programs"]
            assert stage["True"]["seen"] == pytest.approx(stage["False"]["seen"], rel=1e-5)


def test_compiling_needs_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    check_compiler(TrainConfig(compile=True))
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(
        UserError, match=r"train.compile needs the C\+\+ compiler no-such-compiler on every node; .*leave"
    ):
        check_compiler(TrainConfig(compile=True))
    with pytest.raises(UserError, match=r"train\.optimizer=muon needs the C\+\+ .* or set train\.optimizer=adamw"):
        check_compiler(TrainConfig(optimizer="muon", max_grad_norm=None))
    check_compiler(TrainConfig())


def test_a_model_without_known_layers_is_not_compiled() -> None:
    model = tiny_llama(True)
    model.model.layers = torch.nn.ModuleList()
    with pytest.raises(UserError, match="LlamaForCausalLM has no layers"):
        compile_layers(model, TrainConfig(compile=True))


def test_ligers_kernels_are_refused_where_they_cannot_run() -> None:
    with pytest.raises(UserError, match="GPUs only"):
        check_liger(TrainConfig(liger=True), torch.device("cpu"))
    with pytest.raises(UserError, match="pip install liger-kernel"):
        check_liger(TrainConfig(liger=True), torch.device("cuda"))
