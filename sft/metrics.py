"""What happened between two lines of metrics, over all ranks."""

import resource
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from data_tools.plan import StepSize
from sft.clock import Clock
from sft.engine import StepResult
from sft.loss import COUNT, ENTROPY, LOSS, RIGHT, WEIGHT
from sft.world import World


@dataclass(frozen=True)
class BadLoss:
    """Where a loss was no finite number for the first time."""

    step: int
    """Of the interval, from 0."""
    rank: int
    micro_batch: int
    is_nan: bool
    everywhere: bool
    """Whether it was so in every micro-batch of the step: then documents are not the cause."""


@dataclass(frozen=True)
class Summary:
    """An interval of steps over all ranks."""

    sizes: list[StepSize]
    max_length: int
    sums: NDArray[np.float64]
    """[S, 5] `loss.sums_by_source`"""
    norms: list[float]
    """Of the gradient of each step, before clipping."""
    bad_loss: BadLoss | None
    seconds: float
    """In optimizer steps, on this rank."""
    parts: dict[str, float]
    """Seconds of one step by part, on this rank."""
    allocated: float
    """Bytes of GPU memory in use now, on the rank that uses most; 0 without GPUs."""
    peak: float
    """The most there ever were; without GPUs, of the process."""


class Interval:
    """What happened since the last line of metrics: sums stay on the device until one collective makes a line."""

    def __init__(self, max_length: int, world: World, clock: Clock) -> None:
        self._max_length, self._world, self._clock = max_length, world, clock
        self._reset()

    def _reset(self) -> None:
        self._sums: torch.Tensor | float = 0.0
        self._losses: list[torch.Tensor] = []
        self._norms: list[torch.Tensor] = []
        self._sizes: list[StepSize] = []

    def add(self, result: StepResult, size: StepSize) -> None:
        """Take in one optimizer step; nothing waits for the device."""
        self._sums = self._sums + result.stats.sum(0)
        self._losses.append(result.stats[..., LOSS].sum(1))
        self._norms.append(result.gradient_norm)
        self._sizes.append(size)
        self._clock.step_is_done()

    def read(self) -> Summary:
        """The interval over all ranks, the same on each but for the times; all ranks call it. The next starts empty."""
        assert isinstance(self._sums, torch.Tensor), "an interval has steps"
        sources, world = len(self._sums), self._world
        with self._clock.part("device"):  # waits for what it has still to do
            mine = [*_first_bad(torch.stack(self._losses).cpu().numpy()), *_memory(world.device)]
            rows = torch.zeros(world.size, len(mine), dtype=torch.float64)
            rows[world.rank] = torch.tensor(mine)  # the others are 0, so that the sum has the row of every rank
            numbers = world.sum(*self._sums.flatten().unbind(), *rows.to(world.device).flatten().unbind())
            norms = torch.stack(self._norms).tolist()
        of_ranks = np.array(numbers[sources * 5 :]).reshape(world.size, -1)
        seconds, parts = self._clock.read()
        parts.pop("device", None)
        summary = Summary(
            self._sizes,
            self._max_length,
            np.array(numbers[: sources * 5]).reshape(sources, 5),
            norms,
            _first_of_all(of_ranks, len(self._sizes)),
            seconds,
            parts,
            allocated=float(of_ranks[:, -2].max()),
            peak=float(of_ranks[:, -1].max()),
        )
        self._reset()
        return summary


def metrics_of(
    summary: Summary, sources: Sequence[str], flops: float, peak_flops: float | None, ranks: int
) -> dict[str, float]:
    """A line of metrics, without what only the run knows (step, epoch, learning rate, totals).

    loss, loss/SOURCE           Σ loss · weight / Σ weight
    mean_token_accuracy         trained tokens predicted rightly / trained tokens
    entropy                     mean entropy of the predictions of trained tokens, in nats
    grad_norm                   of the last step, before clipping
    step_time, time/PART        seconds of a step, and of its parts
    tokens_per_second           tokens / seconds in steps
    mfu                         operations that the result needs / those that the GPUs could have done
    packing_efficiency          tokens / places in packs
    memory_allocated, _peak     GiB, on the rank that uses most

    Args:
        sources: names, in the order of the sums.
        flops: operations of the interval's steps, over all ranks.
        peak_flops: of one rank's device per second, where it is known.
    """
    totals = summary.sums.sum(0)
    tokens = sum(size.tokens for size in summary.sizes)
    places = sum(size.packs for size in summary.sizes) * summary.max_length
    values = {
        "loss": totals[LOSS] / sum(size.weight for size in summary.sizes),
        "grad_norm": summary.norms[-1],
        "mean_token_accuracy": totals[RIGHT] / totals[COUNT],
        "entropy": totals[ENTROPY] / totals[COUNT],
        "tokens_per_second": tokens / summary.seconds,
        "tokens_per_second_per_gpu": tokens / summary.seconds / ranks,
        "packing_efficiency": tokens / places,
        "step_time": summary.seconds / len(summary.sizes),
        **{f"time/{name}": seconds for name, seconds in summary.parts.items()},
        "memory_peak": summary.peak / 2**30,
    }
    if summary.allocated:
        values["memory_allocated"] = summary.allocated / 2**30
    if peak_flops is not None:
        values["mfu"] = flops / (summary.seconds * peak_flops * ranks)
    for name, of_source in zip(sources, summary.sums, strict=True):
        if of_source[WEIGHT]:
            values[f"loss/{name}"] = of_source[LOSS] / of_source[WEIGHT]
    return {name: float(value) for name, value in values.items()}


def _first_bad(losses: NDArray[np.float64]) -> tuple[float, float, float, float]:
    """losses [steps, M] of this rank → step and micro-batch of the first that is no finite number, whether it is NaN,
    and whether that step has no other loss; the number of steps where all are finite.
    """
    bad = ~np.isfinite(losses)
    if not bad.any():
        return float(len(losses)), 0.0, 0.0, 0.0
    step, micro_batch = (int(number) for number in np.argwhere(bad)[0])
    alone = bool((bad[step] | (losses[step] == 0)).all())  # a micro-batch without labels has a loss of 0
    return float(step), float(micro_batch), float(np.isnan(losses[step, micro_batch])), float(alone)


def _first_of_all(of_ranks: NDArray[np.float64], steps: int) -> BadLoss | None:
    """of_ranks [W, ≥ 4]: `_first_bad` of every rank."""
    rank = int(of_ranks[:, 0].argmin())
    step, micro_batch, is_nan, _ = of_ranks[rank, :4]
    if step == steps:
        return None
    everywhere = bool(((of_ranks[:, 0] == step) & (of_ranks[:, 3] == 1)).all())
    return BadLoss(int(step), rank, int(micro_batch), bool(is_nan), everywhere)


def _memory(device: torch.device) -> tuple[float, float]:
    """Bytes in use and the most there were."""
    if device.type == "cuda":
        return float(torch.cuda.memory_allocated(device)), float(torch.cuda.max_memory_allocated(device))
    unit = 1 if sys.platform == "darwin" else 1024
    return 0.0, float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)
