"""DeepSpeed: start, one optimizer step, save, load, consolidate. The only file that imports DeepSpeed."""

import contextlib
import io
import logging
import os
from dataclasses import dataclass
from pathlib import Path

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # said before DeepSpeed is imported, or it warns that it guesses

import deepspeed
from deepspeed.runtime.engine import DeepSpeedEngine
from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

from sft.batches import Batch
from sft.clock import Clock
from sft.config import TrainConfig
from sft.loss import sums_by_source
from sft.optimizers import make_optimizer
from sft.world import World
from sft.zero import deepspeed_settings

STATE_FOLDER = "state"
"""The folder below a checkpoint in which DeepSpeed keeps its files."""


def start_engine(model: torch.nn.Module, train: TrainConfig, dtype: torch.dtype, world: World) -> DeepSpeedEngine:
    """Hand the model to DeepSpeed, which splits it over the ranks by the ZeRO stage."""
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # Its shared-memory collectives for CPUs are compiled at start: slow, impossible without a compiler. gloo serves.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    settings = deepspeed_settings(train, dtype, world.size)
    engine, *_ = deepspeed.initialize(model=model, optimizer=make_optimizer(model, train), config=settings)
    return engine


@dataclass(frozen=True)
class StepResult:
    """What one rank saw in one optimizer step."""

    loss_sum: torch.Tensor
    """Weighted sum of cross-entropies over this rank's trained tokens, on the device."""
    stats: torch.Tensor
    """[M, S, 5] `loss.sums_by_source` of the trained tokens of each of this rank's micro-batches, on the device."""
    gradient_norm: torch.Tensor
    """Global norm of the gradient before clipping, the same on all ranks, on the device; inf where it was no number."""


def optimizer_step(
    engine: DeepSpeedEngine, batches: list[Batch], weight: float, learning_rate: float, world: World, clock: Clock
) -> StepResult:
    """Accumulate the gradients of all micro-batches and update the weights once (the equation is in `loss.py`).

    Args:
        batches: this rank's micro-batches.
        weight: N, the sum of all labels' weights in the whole step over all ranks.
        clock: counts the parts `data`, `forward`, `backward` and `optimizer`.
    """
    for group in engine.optimizer.param_groups:
        group["lr"] = learning_rate
    loss_sum = torch.zeros((), device=world.device)
    stats: list[torch.Tensor] = []
    with clock.part("data"):
        batches = [batch.to(world.device) for batch in batches]
    for batch in batches:
        with clock.part("forward"):
            batch_loss, batch_stats = engine(*batch.model_inputs)
        with clock.part("backward"):
            engine.backward(batch_loss * world.size / weight, scale_wrt_gas=False)
            if batch is not batches[-1]:
                engine.step()  # counts the micro-batch
        loss_sum += batch_loss.detach()
        stats.append(sums_by_source(batch_stats, batch.targets))
    with clock.part("optimizer"):
        own_norm = _norm_without_zero(engine)
        engine.step()
    norm = engine.get_global_grad_norm() if own_norm is None else own_norm
    return StepResult(loss_sum, torch.stack(stats), torch.as_tensor(norm, device=world.device))


def _norm_without_zero(engine: DeepSpeedEngine) -> torch.Tensor | None:
    """DeepSpeed tells the norm of every optimizer but the plain one, whose gradients are whole on every rank."""
    if engine.zero_optimization() or engine.bfloat16_enabled():
        return None
    return torch.nn.utils.get_total_norm([p.grad for p in engine.module.parameters() if p.grad is not None])


def save_engine(engine: DeepSpeedEngine, folder: Path) -> None:
    """Write this rank's part of weights and optimizer; all ranks call it."""
    engine.save_checkpoint(str(folder), tag=STATE_FOLDER, save_latest=False)


def load_engine(engine: DeepSpeedEngine, folder: Path) -> None:
    """Read what `save_engine` wrote, on the same number of ranks and ZeRO stage."""
    loaded, _ = engine.load_checkpoint(str(folder), tag=STATE_FOLDER, load_lr_scheduler_states=False)
    assert loaded is not None, f"DeepSpeed found nothing in {folder}"


def consolidated_weights(folder: Path, zero_stage: int) -> dict[str, torch.Tensor]:
    """All weights of a checkpoint as whole tensors, on the CPU, in one process; below stage 3 no rank split them."""
    if zero_stage == 3:
        # It reports in prints and bars.
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            weights: dict[str, torch.Tensor] = get_fp32_state_dict_from_zero_checkpoint(str(folder), tag=STATE_FOLDER)
        return weights
    state = torch.load(folder / STATE_FOLDER / "mp_rank_00_model_states.pt", map_location="cpu", weights_only=False)
    module: dict[str, torch.Tensor] = state["module"]
    return module
