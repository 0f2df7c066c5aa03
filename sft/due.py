"""What follows an optimizer step: a line of metrics, an evaluation, a checkpoint."""

from dataclasses import dataclass

from sft.config import TrainConfig
from sft.config_watch import CheckpointConfig, EvaluateConfig


@dataclass(frozen=True)
class Due:
    """What is due after a step, in this order."""

    log: bool
    evaluate: bool
    save: bool


def what_is_due(
    step: int, total: int, train: TrainConfig, evaluate: EvaluateConfig, checkpoint: CheckpointConfig, stopping: bool
) -> Due:
    """A pure function of the settings: a resumed run does the same after the same step.

    Args:
        step: steps done, from 1.
        total: steps of the run; the first is saved, so that a disk that is too small is found at once, and the last is
            evaluated and saved.
        stopping: whether the run was asked to stop: it saves at once, and evaluates when it goes on.
    """
    last = step >= total  # beyond it: a run that went on with fewer steps
    evaluating = not stopping and (last or (evaluate.every is not None and step % evaluate.every == 0))
    saving = stopping or last or step == 1 or step % checkpoint.every == 0
    # Logged before both: a gradient that is no number is found before it is evaluated or saved, and the interval of a
    # resumed run begins where the saved one ended.
    logging = evaluating or saving or step % train.log_every == 0
    return Due(logging, evaluating, saving)
