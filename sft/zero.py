"""ZeRO: DeepSpeed's configuration as a plain dict."""

from typing import Any

import torch

from sft.config import TrainConfig
from sft.schedule import micro_batches_per_step


def deepspeed_settings(train: TrainConfig, dtype: torch.dtype, ranks: int) -> dict[str, Any]:
    """DeepSpeed's configuration, saying what its defaults would decide differently from release to release."""
    settings = {
        "train_micro_batch_size_per_gpu": train.packs_per_micro_batch,
        "gradient_accumulation_steps": micro_batches_per_step(train, ranks),
        "gradient_clipping": train.max_grad_norm,
        "zero_optimization": {"stage": train.zero.stage},
        "zero_allow_untested_optimizer": True,
        "bf16": {"enabled": dtype is torch.bfloat16},
        "steps_per_print": 10**9,
        "wall_clock_breakdown": False,
    }
    if train.zero.stage > 0 or dtype is torch.float32:
        # DeepSpeed has no such accumulation without ZeRO: stage 0 in bfloat16 adds up gradients in bfloat16.
        settings["data_types"] = {"grad_accum_dtype": "fp32"}
    return settings
