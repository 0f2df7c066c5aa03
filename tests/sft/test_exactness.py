"""The loss equation under DeepSpeed: any ranks, micro-batches, masks and weights equal one process on whole documents.

The matrix: ZeRO 0 to 3 × ranks 1, 2 × micro-batches 1, 3 × tied and untied embeddings × weights of labels × one
micro-batch of one rank that has documents, but no label. The plan's own incomplete step has one without documents.
"""

from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from data_tools.plan import NO_PACK, PackPlan, PackTable, PlanSettings, make_plan
from data_tools.store import TokenStore
from sft.world import World
from tests.ranks import run_ranks

BOUND = 1e-6
"""Of the loss, relative; of the gradient, relative to its largest entry; of its norm, relative."""


def matrix(world: World, plain: list[str], weighted: list[str]) -> dict[str, dict[str, float]]:
    """All cases of this number of ranks: `errors` by name.

    Args:
        plain: folders of a store and its plan.
        weighted: of a store whose labels have weights.
    """
    sources = [(TokenStore(Path(store)), PackPlan(Path(plan)).train) for store, plan in (plain, weighted)]
    reports = {}
    for tied, accumulation in product((True, False), (1, 3)):
        steps = list(steps_of(world, accumulation, sources, tied))
        for stage in (0, 1, 2, 3):
            engine = start(world, stage, tied, accumulation)
            for name, batches, weight, truth in steps:
                reports[f"zero {stage}, tied {tied}, {name}"] = errors(world, engine, batches, weight, truth)
    return reports


def steps_of(world: World, accumulation: int, sources: Any, tied: bool) -> Iterator[tuple[str, Any, float, Any]]:
    """One optimizer step of each kind: its name, this rank's micro-batches, N, and the true loss and gradients."""
    from sft.batches import make_batch

    for (store, table), masked in product(sources, (False, True)):
        packs = uneven_packs(table, world.size * accumulation)
        learnt = packs[:-1] if masked else packs
        if not len(learnt):
            continue
        mine = packs.reshape(accumulation, world.size)[:, world.rank]
        batches = [make_batch(store, table, mine[number : number + 1]) for number in range(accumulation)]
        if world.rank == world.size - 1 and masked:
            batches[-1] = replace(batches[-1], targets=without_labels(batches[-1].targets))
        weighted = "weighted" if store is sources[1][0] else "plain"
        name = f"{accumulation} micro-batches, {weighted}, masked {masked}"
        yield name, batches, float(table.weight[learnt].sum()), truth_of(store, table, learnt, tied)


def uneven_packs(table: PackTable, count: int) -> NDArray[np.int64]:
    """Packs with many labels and packs with few, in turn; packs with labels in any case."""
    order = np.argsort(table.trained, kind="stable")
    order = order[table.trained[order] > 0]
    few, many = order[: count // 2], order[::-1][: count - count // 2]
    chosen = np.empty(count, np.int64)
    chosen[0::2], chosen[1::2] = many, few
    return chosen


def without_labels(targets: Any) -> Any:
    """Targets of documents of which nothing is learnt."""
    weights = None if targets.weights is None else targets.weights[:0]
    few = {"places": targets.places[:0], "labels": targets.labels[:0], "sources": targets.sources[:0]}
    return replace(targets, weights=weights, **few)


def truth_of(
    store: TokenStore, table: PackTable, packs: NDArray[np.int64], tied: bool
) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients of the documents one by one, by plain transformers in float64."""
    from tests.sft.models import documents_of, loss_alone, tiny_llama

    model = tiny_llama(tied).double()
    loss = torch.stack([loss_alone(model, store, number) for number in documents_of(table, packs.tolist())]).sum()
    (loss / float(table.weight[packs].sum())).backward()
    return loss.item(), {name: parameter.grad for name, parameter in model.named_parameters()}


def start(world: World, stage: int, tied: bool, accumulation: int, sequence_parallel: int = 1) -> Any:
    """An engine that notes the gradients of its last step in `seen`, whole, by parameter, before it updates."""
    from deepspeed.utils import safe_get_full_grad

    from sft.config import TrainConfig
    from sft.engine import start_engine
    from sft.lean import keep_less
    from sft.model import PackedCausalLM
    from sft.products import multiply_by_onednn
    from tests.sft.models import tiny_llama

    model = tiny_llama(tied)
    multiply_by_onednn()
    keep_less(model)
    packs = world.size * accumulation // sequence_parallel
    settings = {"packs_per_step": packs, "sequence_parallel": sequence_parallel, "max_grad_norm": 1e9}
    train = TrainConfig.model_validate({**settings, "zero": {"stage": stage}})
    engine = start_engine(PackedCausalLM(model), train, torch.float32, world)
    update = engine.step

    def note_and_update() -> None:
        if engine.is_gradient_accumulation_boundary():
            engine.seen = {
                name: safe_get_full_grad(parameter).reshape(parameter_shape(parameter)).clone()
                for name, parameter in engine.module.model.named_parameters()
            }
        update()

    engine.step = note_and_update
    return engine


def parameter_shape(parameter: torch.nn.Parameter) -> torch.Size:
    """Of the whole parameter, which ZeRO-3 splits."""
    return getattr(parameter, "ds_shape", parameter.shape)


def errors(world: World, engine: Any, batches: Any, weight: float, truth: Any) -> dict[str, float]:
    """Relative errors of loss, gradient and norm after a step with rate 0, which changes no weight."""
    from sft.clock import Clock
    from sft.engine import optimizer_step

    result = optimizer_step(engine, batches, weight, 0.0, world, Clock())
    (loss,) = world.sum(result.loss_sum)
    true_loss, gradients = truth
    largest = max(float(gradient.abs().max()) for gradient in gradients.values())
    seen = engine.seen
    return {
        "loss": abs(loss / true_loss - 1),
        "gradient": max(float((seen[name] - gradient).abs().max()) / largest for name, gradient in gradients.items()),
        "norm": abs(float(result.gradient_norm / torch.nn.utils.get_total_norm(list(gradients.values()))) - 1),
    }


def incomplete_step(world: World, store: str, plan: str) -> dict[str, Any]:
    """The last step of an epoch as the plan deals it out, N included: one rank has micro-batches without documents."""
    from sft.batches import make_batch
    from tests.sft.models import uneven_last_step

    tokens, packs = TokenStore(Path(store)), PackPlan(Path(plan))
    step = uneven_last_step(packs)
    mine = packs.micro_batches(step, world.rank, world.size, 1)
    batches = [make_batch(tokens, packs.train, micro_batch) for micro_batch in mine]
    of_step = packs.packs_of_step(step)
    truth = truth_of(tokens, packs.train, of_step[of_step != NO_PACK], tied=True)
    size = packs.size_of_step(step)
    found = errors(world, start(world, 2, True, 3), batches, size.weight, truth)
    return {"errors": found, "labels": [len(batch.targets.labels) for batch in batches]}


def both(world: World, plain: list[str], weighted: list[str]) -> list[Any]:
    """What two ranks are started for."""
    return [matrix(world, plain, weighted), incomplete_step(world, *plain)]


@pytest.fixture(scope="module")
def plans(folders: dict[str, str], weighted_store: TokenStore, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Folders of the store and plan without weights of labels, and with."""
    plan = make_plan(weighted_store, PlanSettings(256, "drop", 0.1, 6, 1), tmp_path_factory.mktemp("plan"))
    assert plan.train.weight.sum() != plan.train.trained.sum(), "weights are to differ from 1"
    return {
        "plain": [folders["store"], folders["plan"]],
        "weighted": [str(weighted_store.folder), str(plan.folder)],
    }


def assert_exact(report: dict[str, dict[str, float]], cases: int) -> None:
    assert len(report) == cases
    wrong = {case: found for case, found in report.items() if not max(found.values()) < BOUND}
    assert not wrong


def test_one_rank_equals_documents_alone(plans: Any) -> None:
    (report,) = run_ranks(1, "tests.sft.test_exactness:matrix", **plans)
    assert_exact(report, 4 * 2 * 2 * (1 + 2))  # a single micro-batch is never without labels


def test_two_ranks_equal_documents_alone(plans: Any) -> None:
    reports = run_ranks(2, "tests.sft.test_exactness:both", **plans)
    for report, _ in reports:
        assert_exact(report, 4 * 2 * 2 * (2 + 2))
    labels = [count for _, step in reports for count in step["labels"]]
    assert len(labels) == 6
    assert 0 in labels, "one micro-batch is to have no trained token"
    assert max(labels) > 4 * min(count for count in labels if count), "masks are to be uneven"
    assert all(max(step["errors"].values()) < BOUND for _, step in reports)
