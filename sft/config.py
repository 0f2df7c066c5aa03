"""Settings of the optimization."""

from typing import Literal

from pydantic import Field

from data_tools.config import Section


class ScheduleConfig(Section):
    """How the learning rate moves over the run."""

    name: Literal["constant_with_warmup", "linear", "cosine", "cosine_with_min_lr"] = "cosine"
    warmup_ratio: float = Field(0.03, ge=0, le=1)
    """Share of all steps in which the rate rises from zero."""
    min_ratio: float = Field(0.1, ge=0, le=1)
    """What `cosine_with_min_lr` ends at, as a share of `learning_rate`."""


class ZeroConfig(Section):
    """DeepSpeed's ZeRO: what is split over the ranks."""

    stage: Literal[0, 1, 2, 3] = 2
    """0 nothing, 1 optimizer states, 2 and gradients, 3 and parameters."""


class TrainConfig(Section):
    """The optimization."""

    packs_per_step: int = Field(16, ge=1)
    """Packs in one optimizer step, all ranks and micro-batches together."""
    packs_per_micro_batch: int = Field(1, ge=1)
    """Packs in one forward and backward pass of one rank."""
    epochs: float = Field(1.0, gt=0)
    """Passes over the data, unless `max_steps` is set."""
    max_steps: int | None = Field(None, ge=1)
    """Optimizer steps."""
    learning_rate: float = Field(2e-5, gt=0)
    schedule: ScheduleConfig = ScheduleConfig()
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's decay rates of the gradient's mean and of its square."""
    weight_decay: float = Field(0.0, ge=0)
    max_grad_norm: float = Field(1.0, gt=0)
    """Gradients are scaled down to this global norm."""
    zero: ZeroConfig = ZeroConfig()
    seed: int = 0
    log_every: int = Field(1, ge=1)
    """Steps between lines of metrics.jsonl."""
