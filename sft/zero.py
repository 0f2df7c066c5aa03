"""ZeRO: DeepSpeed's configuration as a plain dict, and the rules that DeepSpeed finds late, in riddles, or never."""

from typing import Any

import torch

from data_tools.errors import UserError
from sft.config import TrainConfig
from sft.schedule import micro_batches_per_step

BUCKET = 500_000_000
"""Gradients that are reduced together at most, as in DeepSpeed."""


def gradient_dtype(train: TrainConfig, dtype: torch.dtype) -> torch.dtype:
    """What the gradients of a step's micro-batches are summed in, for a model that computes in `dtype`.

    DeepSpeed has no accumulation of its own without ZeRO: stage 0 adds up in what the model computes in.
    """
    if train.zero.stage == 0 or train.pure_bfloat16:
        return dtype
    return torch.float32 if train.gradient_dtype == "float32" else torch.bfloat16


def coalesces(train: TrainConfig, dtype: torch.dtype, ranks: int) -> bool:
    """Whether a step reduces its gradients once, after its last micro-batch.

    DeepSpeed then sums them where autograd leaves them, in what the model computes in: by default only where that is
    what they are summed in anyway. It never depends on free memory: a run goes on elsewhere with the same sums.
    """
    if micro_batches_per_step(train, ranks) == 1 or train.zero.stage < 2:
        return False
    if train.zero.coalesce is not None:
        return train.zero.coalesce
    return train.zero.stage == 2 and not train.zero.offload_optimizer and gradient_dtype(train, dtype) is dtype


def check_train(train: TrainConfig, dtype: torch.dtype, ranks: int) -> None:
    """What settings, the model's type and the number of ranks must agree on, said before anything is loaded.

    Raises:
        UserError: they do not.
    """
    micro_batches_per_step(train, ranks)  # says when the packs cannot be shared out
    name = str(dtype).removeprefix("torch.")
    if ranks % train.zero.hpz_partition_size:
        raise UserError(
            f"train.zero.hpz_partition_size={train.zero.hpz_partition_size} does not divide {ranks} ranks; "
            f"set it to the ranks of one node"
        )
    if dtype is not torch.bfloat16:
        for key, is_on in (("pure_bfloat16", train.pure_bfloat16), ("gradient_dtype", gradient_dtype(train, dtype))):
            if is_on is True or is_on is torch.bfloat16:
                raise UserError(f"train.{key}: the model computes in {name}; set model.dtype=bfloat16, or leave it out")
    if train.zero.coalesce and gradient_dtype(train, dtype) is not dtype:
        way_out = "set train.gradient_dtype=bfloat16, or leave it out" if dtype is torch.bfloat16 else "leave it out"
        raise UserError(f"train.zero.coalesce: gradients would be summed in {name} instead of float32; {way_out}")


def check_device(train: TrainConfig, dtype: torch.dtype, device: torch.device) -> None:
    """What only some devices and machines can do, said before anything is loaded.

    Raises:
        UserError: it is asked for where it cannot be done.
    """
    if device.type == "cuda":
        return
    if dtype is torch.float16:
        raise UserError("model.dtype=float16 trains on GPUs only; set model.dtype=bfloat16 or float32")
    if train.optimizer == "adamw_8bit":
        raise UserError("train.optimizer=adamw_8bit runs on GPUs only; set train.optimizer=adamw")


def deepspeed_settings(train: TrainConfig, dtype: torch.dtype, ranks: int, parameters: int) -> dict[str, Any]:
    """DeepSpeed's configuration, saying what its defaults would decide differently from release to release.

    Args:
        parameters: how many are trained; DeepSpeed allocates a bucket of its default size for the smallest model.
    """
    one_reduction = coalesces(train, dtype, ranks)
    settings: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": train.packs_per_micro_batch,
        # Backward passes that are reduced together are one to DeepSpeed.
        "gradient_accumulation_steps": 1 if one_reduction else micro_batches_per_step(train, ranks),
        "gradient_clipping": train.max_grad_norm or 0.0,
        "zero_optimization": _zero(train, parameters),
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,  # torch's fused AdamW runs on CPUs as well, and needs no compiler
        "bf16": {"enabled": dtype is torch.bfloat16, "check_grad_overflow": False},
        "fp16": {"enabled": dtype is torch.float16},
        "steps_per_print": 10**9,
        "wall_clock_breakdown": False,
        "timers": {"throughput": {"enabled": False}},  # it would wait for the GPU twice a step
    }
    if train.pure_bfloat16:
        settings["bf16"] |= {"bf16_master_weights_and_grads": True, "bf16_optimizer_states": True}
    if train.zero.stage > 0 or dtype is torch.float32:
        names = {torch.float32: "fp32", torch.bfloat16: "bf16"}
        settings["data_types"] = {"grad_accum_dtype": names[gradient_dtype(train, dtype)]}
    if gradient_dtype(train, dtype) is torch.float32 is not dtype:
        settings["communication_data_type"] = "fp32"  # else ranks would add up bfloat16, less exactly the more they are
    if train.optimizer == "muon":
        settings["optimizer"] = {"type": "Muon", "params": _muon(train)}
    return merged(settings, train.deepspeed)


def _zero(train: TrainConfig, parameters: int) -> dict[str, Any]:
    zero = train.zero
    settings: dict[str, Any] = {"stage": zero.stage, "reduce_bucket_size": max(1, min(BUCKET, parameters))}
    if zero.hpz_partition_size > 1:
        settings["zero_hpz_partition_size"] = zero.hpz_partition_size
    if train.optimizer == "muon" and zero.stage == 3:
        settings["reduce_scatter"] = False  # Muon takes whole matrices, not parts of their gradients
    if zero.offload_optimizer is not None:
        settings["offload_optimizer"] = {"device": zero.offload_optimizer}
    if zero.offload_parameters is not None:
        path = {} if zero.nvme_path is None else {"nvme_path": zero.nvme_path}
        settings["offload_param"] = {"device": zero.offload_parameters, **path}
    return settings


def _muon(train: TrainConfig) -> dict[str, Any]:
    return {
        "lr": train.learning_rate,
        "momentum": train.momentum,
        "betas": list(train.betas),
        "eps": train.eps,
        "torch_adam": True,
    }


def merged(settings: dict[str, Any], others: dict[str, Any]) -> dict[str, Any]:
    """Both, section by section; what both say is as in `others`."""
    both = {
        key: merged(settings[key], value) if isinstance(settings.get(key), dict) and isinstance(value, dict) else value
        for key, value in others.items()
    }
    return {**settings, **both}
