"""The arithmetic of steps: how many passes make one, and with which learning rate."""

import math

from data_tools.errors import UserError
from sft.config import ScheduleConfig, TrainConfig


def micro_batches_per_step(train: TrainConfig, ranks: int) -> int:
    """Forward and backward passes of each rank in one optimizer step.

    Raises:
        UserError: the packs of a step cannot be shared out evenly, or ranks not be grouped.
    """
    if ranks % train.sequence_parallel:
        raise UserError(f"train.sequence_parallel={train.sequence_parallel} does not divide {ranks} ranks")
    ranks //= train.sequence_parallel  # those of a group share their packs
    per_pass = ranks * train.packs_per_micro_batch
    if train.packs_per_step % per_pass:
        below, above = train.packs_per_step // per_pass * per_pass, -(-train.packs_per_step // per_pass) * per_pass
        choices = " or ".join(str(choice) for choice in (below, above) if choice)
        raise UserError(
            f"train.packs_per_step={train.packs_per_step} is not a multiple of {ranks} ranks × "
            f"{train.packs_per_micro_batch} packs per micro-batch; set it to {choices}"
        )
    return train.packs_per_step // per_pass


def learning_rate_at(step: int, total_steps: int, peak: float, schedule: ScheduleConfig) -> float:
    """The rate of step `step` (from 0), a pure function: resuming needs no scheduler state."""
    warmup = round(schedule.warmup_ratio * total_steps) if schedule.warmup_steps is None else schedule.warmup_steps
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    done = (step - warmup) / max(1, total_steps - warmup)
    match schedule.name:
        case "constant_with_warmup":
            return peak
        case "linear":
            return peak * (1 - done)
        case "cosine":
            return peak * (1 + math.cos(math.pi * done)) / 2
        case "cosine_with_min_lr":
            return peak * (schedule.min_ratio + (1 - schedule.min_ratio) * (1 + math.cos(math.pi * done)) / 2)
        case "warmup_stable_decay":
            decay = max(1, min(round(schedule.decay_ratio * total_steps), total_steps - warmup))
            fallen = max(0, step + decay - total_steps) / decay
            return peak * (1 - (1 - schedule.min_ratio) * fallen)
