"""What happened between two lines of metrics, over all ranks."""

import math

import torch

from data_tools.errors import UserError
from data_tools.plan import StepSize
from sft.clock import Clock
from sft.engine import StepResult
from sft.loss import RIGHT
from sft.world import World


class Interval:
    """What happened since the last line of metrics: sums stay on the device, one collective makes a line."""

    def __init__(self, max_length: int, world: World, clock: Clock) -> None:
        self._max_length, self._world, self._clock = max_length, world, clock
        self._reset()

    def _reset(self) -> None:
        self._loss_sum: torch.Tensor = torch.zeros((), dtype=torch.float64, device=self._world.device)
        self._stats: torch.Tensor | float = 0.0
        self._norms: list[torch.Tensor] = []
        self._sizes: list[StepSize] = []

    def add(self, result: StepResult, size: StepSize) -> None:
        """Take in one optimizer step; nothing waits for the device."""
        self._loss_sum += result.loss_sum
        self._stats += result.stats
        self._norms.append(result.gradient_norm)
        self._sizes.append(size)

    def summary(self, step: int) -> dict[str, float]:
        """The interval over all ranks, as metrics; the next one starts empty.

        loss                 sum of losses / sum of label weights
        mean_token_accuracy  tokens predicted rightly / trained tokens
        tokens_per_second    tokens / seconds in optimizer steps
        packing_efficiency   tokens / places in packs
        grad_norm            of the last step, before clipping

        Args:
            step: number of the interval's last step, from 1.

        Raises:
            UserError: a gradient was not finite.
        """
        assert isinstance(self._stats, torch.Tensor), "an interval has steps"
        with self._clock.part("device"):  # waits for what it has still to do
            loss_sum, right = self._world.sum(self._loss_sum, self._stats[:, RIGHT].sum())
            norms = torch.stack(self._norms).tolist()
        seconds = sum(self._clock.read().values())
        for number, norm in enumerate(norms, step + 1 - len(norms)):
            if not math.isfinite(norm):
                raise UserError(f"step {number}: the gradient is {norm}; lower train.learning_rate")
        trained = sum(size.trained_tokens for size in self._sizes)
        weight = sum(size.weight for size in self._sizes)
        tokens = sum(size.tokens for size in self._sizes)
        places = sum(size.packs for size in self._sizes) * self._max_length
        values = {
            "loss": loss_sum / weight,
            "mean_token_accuracy": right / trained,
            "tokens_per_second": tokens / seconds,
            "packing_efficiency": tokens / places,
            "grad_norm": norms[-1],
        }
        self._reset()
        return values
