"""Steps and learning rates."""

from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_tools.errors import UserError
from sft.config import ScheduleConfig, TrainConfig
from sft.schedule import learning_rate_at, micro_batches_per_step


def rates(name: str, steps: int = 100, warmup: float = 0.1) -> list[float]:
    schedule = ScheduleConfig.model_validate({"name": name, "warmup_ratio": warmup, "min_ratio": 0.2})
    return [learning_rate_at(step, steps, 1.0, schedule) for step in range(steps)]


@pytest.mark.parametrize(
    ("name", "last"), [("constant_with_warmup", 1.0), ("linear", 0.01), ("cosine", 0.0), ("cosine_with_min_lr", 0.2)]
)
def test_the_rate_rises_to_its_peak_and_falls_to_its_end(name: str, last: float) -> None:
    values = rates(name)
    assert values[:10] == sorted(values[:10])
    assert 0 < values[0] < 0.1
    assert values[10] == max(values) == 1.0
    assert values[10:] == sorted(values[10:], reverse=True)
    assert values[-1] == pytest.approx(last, abs=0.02)


def test_half_way_down() -> None:
    assert rates("linear", warmup=0.0)[50] == pytest.approx(0.5)
    assert rates("cosine", warmup=0.0)[50] == pytest.approx(0.5)
    assert rates("cosine_with_min_lr", warmup=0.0)[50] == pytest.approx(0.6)


def test_packs_must_be_shared_out_evenly() -> None:
    train = TrainConfig(packs_per_step=12, packs_per_micro_batch=2)
    assert micro_batches_per_step(train, ranks=2) == 3
    with pytest.raises(UserError, match=r"not a multiple of 4 ranks × 2 packs per micro-batch; set it to 8 or 16"):
        micro_batches_per_step(train, ranks=4)
    with pytest.raises(UserError, match=r"set it to 16$"):
        micro_batches_per_step(train, ranks=8)


def test_warmup_stable_decay_stays_and_falls_in_a_straight_line() -> None:
    schedule = ScheduleConfig(name="warmup_stable_decay", warmup_steps=10, decay_ratio=0.2, min_ratio=0.1)
    values = [learning_rate_at(step, 100, 1.0, schedule) for step in range(101)]
    assert values[:11] == sorted(values[:11])
    assert set(values[10:81]) == {1.0}
    assert values[90] == pytest.approx(0.55)
    assert values[100] == pytest.approx(0.1)


def test_steps_of_warmup_replace_the_share() -> None:
    schedule = ScheduleConfig(name="linear", warmup_steps=4, warmup_ratio=0.5)
    assert [learning_rate_at(step, 100, 1.0, schedule) for step in range(5)] == [0.2, 0.4, 0.6, 0.8, 1.0]
    assert learning_rate_at(0, 100, 1.0, ScheduleConfig(warmup_steps=0)) == 1.0


@given(
    name=st.sampled_from(get_args(ScheduleConfig.model_fields["name"].annotation)),
    steps=st.integers(1, 300),
    warmup=st.integers(0, 400),
    decay=st.floats(0, 1),
    least=st.floats(0, 1),
)
def test_a_rate_is_never_negative_and_never_above_the_peak(
    name: Any, steps: int, warmup: int, decay: float, least: float
) -> None:
    schedule = ScheduleConfig(name=name, warmup_steps=warmup, decay_ratio=decay, min_ratio=least)
    values = [learning_rate_at(step, steps, 2.0, schedule) for step in range(steps)]
    assert all(0 <= value <= 2.0 for value in values)
    assert values[warmup:] == sorted(values[warmup:], reverse=True)
