"""A line of metrics: sums of an interval over all ranks, without waiting for the device before the line is due."""

import math
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from data_tools.plan import PackPlan, StepSize
from data_tools.store import TokenStore
from sft.clock import Clock
from sft.engine import StepResult
from sft.loss import COUNT, ENTROPY, LOSS, RIGHT, WEIGHT
from sft.metrics import BadLoss, Interval, metrics_of
from sft.world import World
from tests.ranks import run_ranks

CPU = World(0, 1, torch.device("cpu"))


def result(*losses: float, norm: float = 1.0) -> StepResult:
    """A micro-batch for each loss: 4 labels of weight 0.5 of the first source, and a label of the second."""
    stats = torch.zeros(len(losses), 2, 5, dtype=torch.float64)
    for number, loss in enumerate(losses):
        stats[number, 0, [LOSS, WEIGHT, RIGHT, ENTROPY, COUNT]] = torch.tensor([loss, 2.0, 3.0, 8.0, 4.0]).double()
        stats[number, 1, [LOSS, WEIGHT, RIGHT, ENTROPY, COUNT]] = torch.tensor([5.0, 1.0, 0.0, 1.0, 1.0]).double()
    return StepResult(torch.tensor(0.0), stats, torch.tensor(norm))


def size(packs: int, tokens: int, micro_batches: int) -> StepSize:
    return StepSize(packs, tokens, trained_tokens=5 * micro_batches, weight=3.0 * micro_batches, pairs=0)


def test_an_interval_is_added_up_and_the_next_is_empty() -> None:
    interval = Interval(100, CPU, Clock())
    with interval._clock.part("forward"):
        interval.add(result(1.0, 2.0), size(2, 150, 2))
        interval.add(result(3.0, 4.0, norm=2.5), size(2, 190, 2))
    line = metrics_of(interval.read(), ["chats", "code"], 3e9, 1e15, ranks=2)
    assert line["loss"] == (10 + 4 * 5) / 12
    assert (line["loss/chats"], line["loss/code"]) == (10 / 8, 5.0)
    assert (line["mean_token_accuracy"], line["entropy"]) == (12 / 20, 36 / 20)
    assert (line["packing_efficiency"], line["grad_norm"]) == (0.85, 2.5)
    assert line["tokens_per_second"] == 2 * line["tokens_per_second_per_gpu"] == pytest.approx(170 / line["step_time"])
    assert line["mfu"] == pytest.approx(3e9 / (2 * line["step_time"] * 2e15))
    assert 0 < line["time/forward"] <= line["step_time"]
    assert 0.01 < line["memory_peak"] < 100, "GiB of this process"
    interval.add(result(8.0), size(1, 100, 1))
    line = metrics_of(interval.read(), ["chats", "code"], 3e9, None, ranks=1)
    assert line["loss"] == 13 / 3
    assert "mfu" not in line and "memory_allocated" not in line


def test_a_source_without_labels_has_no_loss() -> None:
    interval = Interval(100, CPU, Clock())
    only_first = result(1.0)
    only_first.stats[:, 1] = 0
    interval.add(only_first, StepSize(1, 90, 4, 2.0, 0))
    line = metrics_of(interval.read(), ["chats", "code"], 0.0, None, ranks=1)
    assert line["loss"] == line["loss/chats"] == 0.5 and "loss/code" not in line


@pytest.mark.parametrize(
    ("steps", "found"),
    [
        ([(1.0, 2.0), (3.0, 4.0)], None),
        ([(1.0, 2.0), (3.0, math.nan), (math.inf, math.inf)], BadLoss(1, 0, 1, is_nan=True, everywhere=False)),
        ([(1.0, 2.0), (math.inf, math.nan)], BadLoss(1, 0, 0, is_nan=False, everywhere=True)),
        ([(math.nan, -5.0)], BadLoss(0, 0, 0, is_nan=True, everywhere=True)),
    ],
)
def test_the_first_loss_that_is_no_number_is_found(steps: list[tuple[float, ...]], found: BadLoss | None) -> None:
    """A loss of -5 stands for a micro-batch without labels: with the 5 of the second source it is 0."""
    interval = Interval(100, CPU, Clock())
    for losses in steps:
        interval.add(result(*losses), size(2, 150, 2))
    assert interval.read().bad_loss == found


class Waits(TorchDispatchMode):
    """Counts where a number of a tensor is asked for: on a GPU, the host would wait for it there."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call, unused-ignore]
        self.places: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default):
            import sys

            frame: FrameType | None = sys._getframe(1)
            while frame is not None and "/torch/" in frame.f_code.co_filename:
                frame = frame.f_back
            assert frame is not None
            self.places.append(f"{frame.f_code.co_filename}:{frame.f_lineno}")
        return func(*args, **(kwargs or {}))


def steps_and_a_line(world: World, store: str, plan: str) -> dict[str, Any]:
    """Where a step waits for the device, by ZeRO stage; and a line over both ranks, of which one has a bad loss."""
    from sft.batches import make_batch
    from sft.config import TrainConfig
    from sft.engine import optimizer_step, start_engine
    from sft.model import PackedCausalLM
    from tests.sft.models import tiny_llama

    tokens, packs = TokenStore(Path(store)), PackPlan(Path(plan))
    report: dict[str, Any] = {"waits": {}}
    for stage in (0, 3):
        train = TrainConfig.model_validate({"packs_per_step": 6, "zero": {"stage": stage}})
        engine = start_engine(PackedCausalLM(tiny_llama(True)), train, torch.float32, world)
        clock = Clock()
        interval = Interval(256, world, clock)
        sizes = [packs.size_of_step(step) for step in range(3)]
        for step in range(3):
            with Waits() as waits:
                with clock.part("data"):
                    mine = packs.micro_batches(step, world.rank, world.size, 1)
                    batches = [make_batch(tokens, packs.train, micro_batch) for micro_batch in mine]
                result = optimizer_step(engine, batches, sizes[step].weight, 1e-3, world, clock)
                interval.add(result, sizes[step])
        summary = interval.read()
        report["waits"][str(stage)] = waits.places  # of the last step: in the first, ZeRO-3 compares the ranks' order
        report["line"] = metrics_of(summary, ["chats"], 1.0, None, world.size)
        report["counted"] = [summary.sums[:, COUNT].sum(), sum(size.trained_tokens for size in sizes)]
    stats = result.stats.clone()
    if world.rank == 1:
        stats[2] = math.nan
    interval.add(StepResult(result.loss_sum, stats, result.gradient_norm), sizes[2])
    bad = interval.read().bad_loss
    report["bad"] = None if bad is None else [bad.step, bad.rank, bad.micro_batch, bad.is_nan, bad.everywhere]
    return report


def test_steps_do_not_wait_for_the_device_and_a_line_is_of_all_ranks(folders: dict[str, str]) -> None:
    reports = run_ranks(2, "tests.sft.test_metrics:steps_and_a_line", **folders)
    for report in reports:
        assert report["waits"]["0"] == []
        assert [place.rpartition("/deepspeed/")[2].partition(":")[0] for place in report["waits"]["3"]] == [
            "runtime/utils.py"  # its norm of the gradient; nothing of ours
        ]
        assert report["counted"][0] == report["counted"][1] > 0
        assert report["bad"] == [0, 1, 2, True, False]
        assert set(report["line"]) >= {f"time/{part}" for part in ("data", "forward", "backward", "optimizer")}
        assert sum(value for name, value in report["line"].items() if name.startswith("time/")) <= (
            report["line"]["step_time"] * 1.001
        )
    for name in ("loss", "entropy", "mean_token_accuracy", "grad_norm", "memory_peak", "loss/chats"):
        assert reports[0]["line"][name] == reports[1]["line"][name]
