"""What follows a step: nothing is saved or evaluated that was not logged, and stopping saves at once."""

from hypothesis import given
from hypothesis import strategies as st

from sft.config import TrainConfig
from sft.config_watch import CheckpointConfig, EvaluateConfig
from sft.due import Due, what_is_due


def due(step: int, stopping: bool = False, evaluate: int | None = 3, save: int = 4, log: int = 2) -> Due:
    return what_is_due(
        step, 10, TrainConfig(log_every=log), EvaluateConfig(every=evaluate), CheckpointConfig(every=save), stopping
    )


def test_each_has_its_interval_the_first_step_is_saved_and_the_last_has_everything() -> None:
    steps = range(1, 11)
    assert [step for step in steps if due(step).evaluate] == [3, 6, 9, 10]
    assert [step for step in steps if due(step).save] == [1, 4, 8, 10]
    assert [step for step in steps if due(step).log] == [1, 2, 3, 4, 6, 8, 9, 10]
    assert [step for step in steps if due(step, evaluate=None).evaluate] == [10]


def test_stopping_saves_and_leaves_the_evaluation_for_later() -> None:
    assert due(7, stopping=True) == due(6, stopping=True) == due(10, stopping=True) == Due(True, False, True)


@given(st.integers(1, 10), st.booleans(), st.none() | st.integers(1, 12), st.integers(1, 12), st.integers(1, 12))
def test_what_is_looked_at_was_logged(step: int, stopping: bool, evaluate: int | None, save: int, log: int) -> None:
    found = due(step, stopping, evaluate, save, log)
    assert found.log or not (found.evaluate or found.save)
    assert found.save or not stopping
