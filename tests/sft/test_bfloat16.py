"""bfloat16 with every ZeRO stage: a step, a checkpoint, whole weights from it, and the step after a resume."""

from pathlib import Path
from typing import Any

import torch

from data_tools.plan import PackPlan
from data_tools.store import TokenStore
from sft.world import World
from tests.ranks import run_ranks


def train_and_resume(world: World, store: str, plan: str, folder: str) -> dict[str, Any]:
    """By stage: losses of two steps, the second again after a resume, and the names of the consolidated weights."""
    from sft.batches import make_batch
    from sft.clock import Clock
    from sft.config import TrainConfig
    from sft.engine import consolidated_weights, load_engine, optimizer_step, save_engine, start_engine
    from sft.model import PackedCausalLM
    from tests.sft.models import tiny_llama

    tokens, packs = TokenStore(Path(store)), PackPlan(Path(plan))

    def step(engine: Any, number: int) -> float:
        mine = packs.micro_batches(number, world.rank, world.size, 1)
        batches = [make_batch(tokens, packs.train, micro_batch) for micro_batch in mine]
        size = packs.size_of_step(number)
        return world.sum(optimizer_step(engine, batches, size.weight, 1e-3, world, Clock()).loss_sum)[0]

    report = {}
    for stage in (0, 1, 2, 3):
        train = TrainConfig.model_validate({"packs_per_step": 6, "zero": {"stage": stage}})

        def engine(train: TrainConfig = train) -> Any:
            return start_engine(PackedCausalLM(tiny_llama(False).bfloat16()), train, torch.bfloat16, world)

        first = engine()
        checkpoint = Path(folder) / str(stage)
        losses = [step(first, 0)]
        save_engine(first, checkpoint)
        losses.append(step(first, 1))
        second = engine()
        load_engine(second, checkpoint)
        weights = consolidated_weights(checkpoint, stage) if world.is_main else {}
        report[str(stage)] = {
            "losses": [loss.hex() for loss in losses],
            "resumed": step(second, 1).hex(),
            "weights": len(weights),
        }
    return report


def test_every_stage_trains_saves_and_resumes_in_bfloat16(folders: dict[str, str], tmp_path: Path) -> None:
    report, _ = run_ranks(2, "tests.sft.test_bfloat16:train_and_resume", folder=str(tmp_path), **folders)
    assert sorted(report) == ["0", "1", "2", "3"]
    for stage in report.values():
        assert stage["resumed"] == stage["losses"][1] != stage["losses"][0]
        assert stage["weights"] == 21
