"""DeepSpeed: start, one optimizer step, save, load, consolidate. The only file that imports DeepSpeed."""

import contextlib
import difflib
import io
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # said before DeepSpeed is imported, or it warns that it guesses

import deepspeed
from deepspeed.ops.op_builder import AsyncIOBuilder
from deepspeed.runtime.config import DeepSpeedConfig
from deepspeed.runtime.engine import DeepSpeedEngine
from deepspeed.utils.groups import _get_zero_param_intra_parallel_group
from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint
from pydantic import ValidationError

from data_tools.errors import UserError
from sft.batches import Batch
from sft.clock import Clock
from sft.config import TrainConfig, ZeroConfig
from sft.loss import sums_by_source
from sft.optimizers import make_optimizer, parameter_groups
from sft.world import World
from sft.zero import deepspeed_settings

STATE_FOLDER = "state"
"""The folder below a checkpoint in which DeepSpeed keeps its files."""


def start_engine(model: torch.nn.Module, train: TrainConfig, dtype: torch.dtype, world: World) -> DeepSpeedEngine:
    """Hand the model to DeepSpeed, which splits it over the ranks by the ZeRO stage.

    Raises:
        UserError: DeepSpeed refuses the settings.
    """
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # Its shared-memory collectives for CPUs are compiled at start: slow, impossible without a compiler. gloo serves.
    if world.device.type == "cpu":
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    groups = parameter_groups(model, train.weight_decay)
    trained = sum(parameter.numel() for group in groups for parameter in group["params"])
    settings = deepspeed_settings(train, dtype, world.size, trained)
    check_settings(settings)
    if train.zero.stage == 3:
        split_model(model, settings, dtype, world)
    optimizer = make_optimizer(groups, train)
    own = {"model_parameters": groups} if optimizer is None else {"optimizer": optimizer}
    engine, *_ = deepspeed.initialize(model=model, config=settings, **own)
    for group in engine.optimizer.param_groups:
        peak = train.muon_learning_rate if group.get("use_muon") else None
        group["factor"] = (peak or train.learning_rate) / train.learning_rate
    if engine.fp16_enabled():  # where it does not raise an exception of no kind, `_as_told` says it
        scaler_of(engine.optimizer).raise_error_at_min_scale = False
    return engine


def scaler_of(optimizer: Any) -> Any:
    """What has `cur_scale`, by which float16's losses are multiplied."""
    return getattr(optimizer, "loss_scaler", None) or optimizer.loss_scale_config


def split_model(model: torch.nn.Module, settings: dict[str, Any], dtype: torch.dtype, world: World) -> None:
    """Leave every rank its part of each parameter, one after the other: at no time is more than one whole on a device.

    Args:
        model: whole on the main rank, which sends its parameters; the others need but their shapes (`hollow.py`).
    """
    in_groups = settings["zero_optimization"].get("zero_hpz_partition_size", 1) > 1
    # The first engine of a process makes these groups.
    groups = _get_zero_param_intra_parallel_group() if in_groups else None
    zero = deepspeed.zero.Init(
        torch.nn.Module(), config_dict_or_path=settings, dtype=dtype, zero_param_parallel_group=groups
    )
    for parameter in model.parameters():
        if parameter.is_meta:
            memory = torch.empty_like(parameter, dtype=dtype, device=world.device)
            # It stays the same object, which optimizer and tied layers know.
            torch.utils.swap_tensors(parameter, torch.nn.Parameter(memory, parameter.requires_grad))
        parameter.data = parameter.data.to(world.device, dtype)
        zero._convert_to_zero_parameters([parameter])
    for buffer in model.buffers():
        buffer.data = buffer.data.to(world.device)


class _Asked(dict[str, Any]):
    """Notes which keys are asked for: DeepSpeed says nothing of those that it does not know."""

    def __init__(self, values: dict[str, Any]) -> None:
        super().__init__(values)
        self.asked: set[str] = set()

    def get(self, key: str, default: Any = None) -> Any:
        self.asked.add(key)
        return super().get(key, default)

    def __getitem__(self, key: str) -> Any:
        self.asked.add(key)
        return super().__getitem__(key)

    def __contains__(self, key: object) -> bool:
        self.asked.add(str(key))
        return super().__contains__(key)


def check_settings(settings: dict[str, Any]) -> None:
    """Read a configuration as DeepSpeed will.

    Raises:
        UserError: it has a key that DeepSpeed does not know, or a value that it refuses.
    """
    asked = _Asked(settings)
    try:
        DeepSpeedConfig(asked)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise UserError(f"train.deepspeed: {error.title} refuses {key}: {first['msg']}") from None
    except (ValueError, AssertionError, TypeError) as error:
        raise UserError(f"train.deepspeed: DeepSpeed refuses it: {' '.join(str(error).split())}") from None
    if unknown := sorted(set(settings) - asked.asked):
        near = difflib.get_close_matches(unknown[0], asked.asked, n=1)
        hint = f"did you mean {near[0]}?" if near else f"DeepSpeed {deepspeed.__version__} has none of that name"
        raise UserError(f"unknown key train.deepspeed.{unknown[0]}; {hint}")


def check_offload(zero: ZeroConfig) -> None:
    """What offloading to a disk needs, said before anything is loaded.

    Raises:
        UserError: it is not there.
    """
    if zero.nvme_path is None:
        return
    if not AsyncIOBuilder().is_compatible(verbose=False):
        raise UserError(
            "train.zero: offloading to nvme needs libaio (package libaio-dev) and a C++ compiler on every node; "
            "install them, or use cpu"
        )
    if not os.access(zero.nvme_path, os.W_OK) or not Path(zero.nvme_path).is_dir():
        raise UserError(f"train.zero.nvme_path: {zero.nvme_path} is no folder that can be written to; make it")


@dataclass(frozen=True)
class StepResult:
    """What one rank saw in one optimizer step."""

    loss_sum: torch.Tensor
    """Weighted sum of cross-entropies over this rank's trained tokens, on the device."""
    stats: torch.Tensor
    """[M, S, 5] `loss.sums_by_source` of the trained tokens of each of this rank's micro-batches, on the device."""
    gradient_norm: torch.Tensor
    """Global norm of the gradient before clipping, the same on all ranks, on the device; inf where it was no number,
    0 where DeepSpeed left the step out because float16's loss scale was too large, and a smaller one is left."""


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
        group["lr"] = learning_rate * group["factor"]
    loss_sum = torch.zeros((), device=world.device)
    stats: list[torch.Tensor] = []
    with clock.part("data"):
        batches = [batch.to(world.device) for batch in batches]
    one_reduction = engine.gradient_accumulation_steps() != len(batches)  # `zero.coalesces`
    with engine.coalesce_grad_reduction() if one_reduction else contextlib.nullcontext():
        for number, batch in enumerate(batches, 1):
            with clock.part("forward"):
                batch_loss, batch_stats = engine(*batch.model_inputs)
            with clock.part("backward"):
                engine.backward(batch_loss * world.size / weight, scale_wrt_gas=False)
                if number < len(batches) and not one_reduction:
                    engine.step()  # counts the micro-batch
            loss_sum += batch_loss.detach()
            stats.append(sums_by_source(batch_stats, batch.targets))
    with clock.part("optimizer"):
        own_norm, at_smallest = _norm_without_zero(engine), _has_smallest_scale(engine)
        engine.step()
    norm = engine.get_global_grad_norm() if own_norm is None else own_norm
    return StepResult(loss_sum, torch.stack(stats), _as_told(norm, engine, world.device, at_smallest))


def _has_smallest_scale(engine: DeepSpeedEngine) -> bool:
    """Whether float16's losses are scaled as little as they can be: what overflows then is left out for ever."""
    if not engine.fp16_enabled():
        return False
    scaler = scaler_of(engine.optimizer)
    smallest = getattr(scaler, "min_scale", None) or getattr(scaler, "min_loss_scale", None)
    return smallest is not None and scaler.cur_scale <= smallest


def _as_told(norm: Any, engine: DeepSpeedEngine, device: torch.device, at_smallest: bool) -> torch.Tensor:
    """DeepSpeed's norm as `StepResult` has it; DeepSpeed says -1 or nan where the gradient is no number."""
    if engine.fp16_enabled() and engine.optimizer.overflow:
        return torch.full((), torch.inf if at_smallest else 0.0, device=device)
    norm = torch.as_tensor(norm, dtype=torch.float32, device=device)
    return torch.where(norm >= 0, norm, torch.inf)


def _norm_without_zero(engine: DeepSpeedEngine) -> torch.Tensor | None:
    """DeepSpeed tells the norm of every optimizer but the plain one, whose gradients are whole on every rank."""
    if engine.zero_optimization() or engine.bfloat16_enabled() or engine.fp16_enabled():
        return None
    return torch.nn.utils.get_total_norm([p.grad for p in engine.module.parameters() if p.grad is not None])


def save_engine(engine: DeepSpeedEngine, folder: Path) -> None:
    """Write this rank's part of what is trained and of the optimizer; all ranks call it."""
    engine.save_checkpoint(str(folder), tag=STATE_FOLDER, save_latest=False, exclude_frozen_parameters=True)


def load_engine(engine: DeepSpeedEngine, folder: Path) -> None:
    """Read what `save_engine` wrote, on the same number of ranks and ZeRO stage."""
    loaded, _ = engine.load_checkpoint(
        str(folder), tag=STATE_FOLDER, load_lr_scheduler_states=False, custom_load_fn=_load_trained
    )
    assert loaded is not None, f"DeepSpeed found nothing in {folder}"


def _load_trained(src: dict[str, torch.Tensor], dst: torch.nn.Module) -> None:
    """Frozen weights are in no checkpoint; all others must be there."""
    found = dst.load_state_dict(src, strict=False)
    missing = set(dst.state_dict()) & set(found.missing_keys)
    assert not missing and not found.unexpected_keys, f"the checkpoint is of another model: {sorted(missing)}"


def consolidated_weights(folder: Path, zero_stage: int) -> dict[str, torch.Tensor]:
    """The trained weights of a checkpoint as whole tensors, on the CPU, in one process; below stage 3 none is split."""
    if zero_stage == 3:
        # It reports in prints and bars.
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            weights: dict[str, torch.Tensor] = get_fp32_state_dict_from_zero_checkpoint(str(folder), tag=STATE_FOLDER)
        return weights
    state = torch.load(folder / STATE_FOLDER / "mp_rank_00_model_states.pt", map_location="cpu", weights_only=False)
    module: dict[str, torch.Tensor] = state["module"]
    return module
