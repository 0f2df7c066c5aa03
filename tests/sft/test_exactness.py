"""The loss equation under DeepSpeed: 2 ranks × 3 micro-batches, uneven masks, equal one process on one batch."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from data_tools.plan import NO_PACK, PackPlan, PlanSettings, make_plan
from data_tools.store import TokenStore
from sft.world import World
from tests.ranks import run_ranks

LEARNING_RATE = 0.1


def every_stage(world: World, store: str, plan: str, weighted_store: str, weighted_plan: str) -> dict[str, Any]:
    """`gradient_errors` for ZeRO 0 to 3, and for ZeRO 2 with labels of different weights."""
    reports = {str(stage): gradient_errors(world, store, plan, stage) for stage in (0, 1, 2, 3)}
    return {**reports, "weighted": gradient_errors(world, weighted_store, weighted_plan, 2)}


def gradient_errors(world: World, store: str, plan: str, stage: int) -> dict[str, Any]:
    """Relative error of the gradient (seen as an SGD update) and of the loss, for tied and untied embeddings."""
    import deepspeed

    from sft.batches import make_batch
    from sft.clock import Clock
    from sft.config import TrainConfig
    from sft.engine import optimizer_step, start_engine
    from sft.model import PackedCausalLM
    from tests.sft.models import documents_of, loss_alone, tiny_llama, uneven_last_step

    def sgd(groups: Any, lr: float, **_: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD(groups, lr=lr)

    torch.optim.AdamW = sgd  # type: ignore[assignment,misc]  # whose update shows the gradient itself
    tokens, packs = TokenStore(Path(store)), PackPlan(Path(plan))
    train = TrainConfig.model_validate(
        {"packs_per_step": 6, "learning_rate": LEARNING_RATE, "max_grad_norm": 1e9, "zero": {"stage": stage}}
    )
    step = uneven_last_step(packs)  # incomplete: one rank has micro-batches without any document
    report: dict[str, Any] = {"labels": [], "errors": {}, "norms": {}}
    for tied in (True, False):
        reference = tiny_llama(tied)
        before = {name: parameter.detach().clone() for name, parameter in reference.named_parameters()}
        engine = start_engine(PackedCausalLM(copy.deepcopy(reference)), train, torch.float32, world)
        mine = packs.micro_batches(step, world.rank, world.size, 1)
        batches = [make_batch(tokens, packs.train, micro_batch) for micro_batch in mine]
        size = packs.size_of_step(step)
        result = optimizer_step(engine, batches, size.weight, LEARNING_RATE, world, Clock())
        (loss_sum,) = world.sum(result.loss_sum)

        documents = documents_of(packs.train, [int(p) for p in packs.packs_of_step(step) if p != NO_PACK])
        expected = torch.stack([loss_alone(reference, tokens, number) for number in documents]).sum()
        (expected / size.weight).backward()
        gradients = {name: parameter.grad for name, parameter in reference.named_parameters()}
        largest = max(float(gradient.abs().max()) for gradient in gradients.values())
        error = abs(loss_sum / expected.item() - 1)
        parameters = list(engine.module.model.parameters())
        with deepspeed.zero.GatheredParameters(parameters, enabled=stage == 3):
            for name, parameter in engine.module.model.named_parameters():
                gradient = (before[name] - parameter.detach()) / LEARNING_RATE
                error = max(error, float((gradient - gradients[name]).abs().max()) / largest)
        report["errors"][str(tied)] = error
        expected_norm = torch.nn.utils.get_total_norm(list(gradients.values()))
        report["norms"][str(tied)] = float(result.gradient_norm / expected_norm)
        report["weight"], report["trained"] = size.weight, size.trained_tokens
        report["labels"] = [len(batch.targets.labels) for batch in batches]
    return report


@pytest.fixture(scope="module")
def reports(
    folders: dict[str, str], weighted_store: TokenStore, tmp_path_factory: pytest.TempPathFactory
) -> list[dict[str, Any]]:
    """What both ranks report, by stage; one start of two processes serves all stages."""
    weighted_plan = make_plan(weighted_store, PlanSettings(256, "drop", 0.1, 6, 1), tmp_path_factory.mktemp("plan"))
    weighted = {"weighted_store": str(weighted_store.folder), "weighted_plan": str(weighted_plan.folder)}
    return run_ranks(2, "tests.sft.test_exactness:every_stage", **folders, **weighted)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_two_ranks_and_three_micro_batches_equal_one_process(stage: int, reports: list[dict[str, Any]]) -> None:
    of_stage = [report[str(stage)] for report in reports]
    labels = [count for report in of_stage for count in report["labels"]]
    assert len(labels) == 6
    assert 0 in labels, "one micro-batch is to have no trained token"
    assert max(labels) > 4 * min(count for count in labels if count), "masks are to be uneven"
    for report in of_stage:
        assert max(report["errors"].values()) < 1e-5
        assert all(abs(ratio - 1) < 1e-5 for ratio in report["norms"].values())


def test_weights_of_labels_weigh_their_losses_and_gradients(reports: list[dict[str, Any]]) -> None:
    for report in (report["weighted"] for report in reports):
        assert report["weight"] != report["trained"], "weights are to differ from 1"
        assert max(report["errors"].values()) < 1e-5
        assert all(abs(ratio - 1) < 1e-5 for ratio in report["norms"].values())


def test_without_weights_every_label_counts_one(reports: list[dict[str, Any]]) -> None:
    assert all(report["2"]["weight"] == report["2"]["trained"] for report in reports)
