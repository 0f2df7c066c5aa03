"""A line of metrics: sums of an interval, and a gradient that is no number named by its step."""

import pytest
import torch

from data_tools.errors import UserError
from data_tools.plan import StepSize
from sft.clock import Clock
from sft.engine import StepResult
from sft.loss import RIGHT
from sft.metrics import Interval
from sft.world import World

CPU = World(0, 1, torch.device("cpu"))


def result(loss_sum: float, right: float, norm: float = 1.0) -> StepResult:
    stats = torch.zeros(2, 5, dtype=torch.float64)
    stats[:, RIGHT] = right / 2
    return StepResult(torch.tensor(loss_sum), stats, torch.tensor(norm))


def test_an_interval_is_added_up_and_the_next_is_empty() -> None:
    interval = Interval(100, CPU, Clock())
    interval.add(result(30.0, 6), StepSize(packs=2, tokens=150, trained_tokens=10, weight=5.0, pairs=0))
    interval.add(result(10.0, 4, norm=2.5), StepSize(packs=2, tokens=190, trained_tokens=30, weight=15.0, pairs=0))
    line = interval.summary(2)
    assert (line["loss"], line["mean_token_accuracy"], line["packing_efficiency"]) == (2.0, 0.25, 0.85)
    assert line["grad_norm"] == 2.5
    interval.add(result(8.0, 1), StepSize(packs=1, tokens=100, trained_tokens=4, weight=4.0, pairs=0))
    assert interval.summary(3)["loss"] == 2.0


def test_the_first_step_without_a_finite_gradient_is_named() -> None:
    interval = Interval(100, CPU, Clock())
    for norm in (1.0, float("inf"), float("nan"), 1.0):
        interval.add(result(1.0, 1, norm), StepSize(packs=1, tokens=100, trained_tokens=4, weight=4.0, pairs=0))
    with pytest.raises(UserError, match=r"^step 8: the gradient is inf; lower train\.learning_rate"):
        interval.summary(10)


def test_parts_of_a_step_are_added_up_until_they_are_read() -> None:
    clock = Clock()
    for name in ("data", "forward", "data"):
        with clock.part(name):
            pass
    seconds = clock.read()
    assert list(seconds) == ["data", "forward"] and min(seconds.values()) >= 0
    assert clock.read() == {}
