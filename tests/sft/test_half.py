"""Numbers of 16 bits with every ZeRO stage: a step, a checkpoint, whole weights from it, the step after a resume."""

from pathlib import Path
from typing import Any

import pytest
import torch

from data_tools.plan import PackPlan
from data_tools.store import TokenStore
from sft.world import World
from tests.ranks import run_ranks


def train_and_resume(world: World, store: str, plan: str, folder: str, name: str) -> dict[str, Any]:
    """By stage: losses of two steps, the second again after a resume, and the names of the consolidated weights."""
    from sft.batches import make_batch
    from sft.clock import Clock
    from sft.config import TrainConfig
    from sft.engine import consolidated_weights, load_engine, optimizer_step, save_engine, start_engine
    from sft.model import PackedCausalLM
    from tests.sft.models import tiny_llama

    let_cpus_try_float16()
    dtype: torch.dtype = getattr(torch, name)
    tokens, packs = TokenStore(Path(store)), PackPlan(Path(plan))

    norms: list[float] = []

    def step(engine: Any, number: int) -> float:
        mine = packs.micro_batches(number, world.rank, world.size, 1)
        batches = [make_batch(tokens, packs.train, micro_batch) for micro_batch in mine]
        size = packs.size_of_step(number)
        result = optimizer_step(engine, batches, size.weight, 1e-3, world, Clock())
        norms.append(float(result.gradient_norm))
        return world.sum(result.loss_sum)[0]

    report = {}
    for stage in (0, 1, 2, 3):
        train = TrainConfig.model_validate({"packs_per_step": 6, "zero": {"stage": stage}})

        def engine(train: TrainConfig = train) -> Any:
            return start_engine(PackedCausalLM(tiny_llama(False).to(dtype)), train, dtype, world)

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
            "norms": norms[-3:],
        }
    return report


def let_cpus_try_float16() -> None:
    """DeepSpeed takes float16 from CPUs alone that multiply in it; torch does it on all of them, slowly."""
    from deepspeed.accelerator import get_accelerator

    get_accelerator().is_fp16_supported = lambda: True


def too_large_gradients(world: World, store: str, plan: str) -> dict[str, list[float]]:
    """By stage: what is told of the gradient's norm when it is infinite, first with a scale that can become smaller."""
    from sft.batches import make_batch
    from sft.clock import Clock
    from sft.config import TrainConfig
    from sft.engine import optimizer_step, scaler_of, start_engine
    from sft.model import PackedCausalLM
    from tests.sft.models import tiny_llama

    let_cpus_try_float16()
    tokens, packs = TokenStore(Path(store)), PackPlan(Path(plan))
    report: dict[str, list[float]] = {}
    for stage in (0, 1, 2, 3):
        train = TrainConfig.model_validate({"packs_per_step": 6, "zero": {"stage": stage}})
        model = tiny_llama(False).to(torch.float16)
        model.model.norm.register_forward_hook(lambda _, inputs, output: _times_infinity(output))
        engine = start_engine(PackedCausalLM(model), train, torch.float16, world)
        report[str(stage)] = []
        for scale in (2.0, 1.0):
            scaler_of(engine.optimizer).cur_scale = scale
            scaler_of(engine.optimizer).cur_hysteresis = 1
            mine = packs.micro_batches(0, world.rank, world.size, 1)
            batches = [make_batch(tokens, packs.train, micro_batch) for micro_batch in mine]
            result = optimizer_step(engine, batches, packs.size_of_step(0).weight, 1e-3, world, Clock())
            report[str(stage)].append(float(result.gradient_norm))
    return report


def _times_infinity(output: torch.Tensor) -> torch.Tensor:
    if output.requires_grad:
        output.register_hook(lambda gradient: gradient * torch.inf)
    return output


def test_a_gradient_that_no_scale_makes_finite_is_told(folders: dict[str, str]) -> None:
    report, _ = run_ranks(2, "tests.sft.test_half:too_large_gradients", **folders)
    assert report == {str(stage): [0.0, torch.inf] for stage in (0, 1, 2, 3)}


@pytest.mark.parametrize("name", ["bfloat16", "float16"])
def test_every_stage_trains_saves_and_resumes(name: str, folders: dict[str, str], tmp_path: Path) -> None:
    report, _ = run_ranks(2, "tests.sft.test_half:train_and_resume", folder=str(tmp_path), name=name, **folders)
    assert sorted(report) == ["0", "1", "2", "3"]
    for stage in report.values():
        assert stage["resumed"] == stage["losses"][1] != stage["losses"][0]
        assert stage["weights"] == 21
        first, *later = stage["norms"]
        assert first == pytest.approx(report["0"]["norms"][0], rel=0.02) and first > 0
        # float16 may leave out a step, where its first scales are too large; it is the same step after a resume.
        assert later[0] == later[1] and (later[0] > 0 or name == "float16")
