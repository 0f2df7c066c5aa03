"""The optimizer, and which parameters are decayed."""

import importlib.util
from typing import Any

import torch

from data_tools.errors import UserError
from sft.config import TrainConfig


def parameter_groups(model: torch.nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices and embeddings are decayed, norms and biases are not; what is frozen or empty is left out."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [parameter for parameter in trained if _dimensions(parameter) >= 2], "weight_decay": weight_decay},
        {"params": [parameter for parameter in trained if _dimensions(parameter) < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def _dimensions(parameter: torch.Tensor) -> int:
    """Of the whole parameter: where ZeRO-3 split it before, its own shape is that of a part."""
    return len(getattr(parameter, "ds_shape", parameter.shape))


def make_optimizer(groups: list[dict[str, Any]], train: TrainConfig) -> torch.optim.Optimizer | None:
    """AdamW over groups of parameters; the loop sets the rate of every step. None: DeepSpeed makes Muon itself.

    Raises:
        UserError: bitsandbytes is not installed.
    """
    match train.optimizer:
        case "adamw":
            return torch.optim.AdamW(groups, lr=train.learning_rate, betas=train.betas, eps=train.eps, fused=True)
        case "adamw_8bit":
            if importlib.util.find_spec("bitsandbytes") is None:
                raise UserError("train.optimizer=adamw_8bit needs bitsandbytes: pip install bitsandbytes")
            import bitsandbytes  # type: ignore[import-not-found]

            optimizer: torch.optim.Optimizer = bitsandbytes.optim.AdamW8bit(
                groups, lr=train.learning_rate, betas=train.betas, eps=train.eps
            )
            return optimizer
        case "muon":
            return None
