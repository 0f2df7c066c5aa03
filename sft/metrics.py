"""What happened between two lines of metrics, over all ranks."""

import torch

from data_tools.plan import StepSize
from sft.engine import StepResult
from sft.world import World


class Interval:
    """What happened since the last line of metrics: sums stay on the device, one collective makes a line."""

    def __init__(self, max_length: int, world: World) -> None:
        self._max_length, self._world = max_length, world
        self._reset()

    def _reset(self) -> None:
        self._loss_sum: torch.Tensor = torch.zeros((), dtype=torch.float64, device=self._world.device)
        self._correct: torch.Tensor = torch.zeros((), dtype=torch.int64, device=self._world.device)
        self._sizes: list[StepSize] = []
        self._seconds = 0.0

    def add(self, result: StepResult, size: StepSize, seconds: float) -> None:
        """Take in one optimizer step."""
        self._loss_sum += result.loss_sum
        self._correct += result.correct
        self._sizes.append(size)
        self._seconds += seconds

    def summary(self) -> dict[str, float]:
        """The interval over all ranks, as metrics; the next one starts empty.

        loss                 sum of losses / sum of label weights
        mean_token_accuracy  tokens predicted rightly / trained tokens
        tokens_per_second    tokens / seconds in optimizer steps
        packing_efficiency   tokens / places in packs
        """
        loss_sum, correct = self._world.sum(self._loss_sum, self._correct)
        trained = sum(size.trained_tokens for size in self._sizes)
        weight = sum(size.weight for size in self._sizes)
        tokens = sum(size.tokens for size in self._sizes)
        places = sum(size.packs for size in self._sizes) * self._max_length
        values = {
            "loss": loss_sum / weight,
            "mean_token_accuracy": correct / trained,
            "tokens_per_second": tokens / self._seconds,
            "packing_efficiency": tokens / places,
        }
        self._reset()
        return values
