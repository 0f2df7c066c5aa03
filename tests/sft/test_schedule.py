"""Steps and learning rates."""

import pytest

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
