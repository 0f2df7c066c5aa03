"""Layers that forget their activations: the same losses and gradients, by more passes."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from data_tools.errors import UserError
from data_tools.plan import PackPlan
from data_tools.store import TokenStore
from sft.config import TrainConfig
from sft.layers import forget_activations
from sft.world import World
from tests.ranks import run_ranks
from tests.sft.models import tiny_llama


def steps(world: World, store: str, plan: str) -> dict[str, dict[str, Any]]:
    """By ZeRO stage and setting: loss and norm of two steps with dropout, and how often the first layers ran."""
    from sft.batches import make_batch
    from sft.clock import Clock
    from sft.engine import optimizer_step, start_engine
    from sft.model import PackedCausalLM

    tokens, packs = TokenStore(Path(store)), PackPlan(Path(plan))
    report: dict[str, dict[str, Any]] = {}
    for stage in (0, 2, 3):
        report[str(stage)] = {}
        for setting in (False, True, 2):
            values = {"packs_per_step": 6, "zero": {"stage": stage}, "activation_checkpointing": setting}
            train = TrainConfig.model_validate(values)
            model = tiny_llama(True)
            calls = [0, 0]
            for number, layer in enumerate(model.model.layers):
                layer.self_attn.attention_dropout = 0.1
                layer.mlp.register_forward_pre_hook(partial(count, calls, number))
            forget_activations(model, train)
            engine = start_engine(PackedCausalLM(model), train, torch.float32, world)
            torch.manual_seed(world.rank)
            seen = []
            for step in range(2):
                mine = packs.micro_batches(step, world.rank, world.size, 1)
                batches = [make_batch(tokens, packs.train, micro_batch) for micro_batch in mine]
                size = packs.size_of_step(step)
                result = optimizer_step(engine, batches, size.weight, 1e-3, world, Clock())
                seen += [float(result.loss_sum).hex(), float(result.gradient_norm).hex()]
            report[str(stage)][str(setting)] = {"seen": seen, "calls": calls}
    return report


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
