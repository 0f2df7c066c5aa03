"""The optimizer, and which parameters are decayed."""

import importlib.util
from typing import Any

import torch
from transformers import PreTrainedModel

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


def check_muon(model: PreTrainedModel, train: TrainConfig) -> None:
    """DeepSpeed gives Muon all matrices but those whose names say that they are embeddings or the output layer.

    Raises:
        UserError: this model calls them otherwise.
    """
    if train.optimizer != "muon":
        return
    for name, module in model.named_modules():
        is_end = isinstance(module, torch.nn.Embedding) or module is model.get_output_embeddings()
        if is_end and module.weight.requires_grad and "embed" not in name and "lm_head" not in name:
            raise UserError(
                f"train.optimizer=muon: DeepSpeed would take {name}, embedding or output layer, for a matrix of a "
                f"layer; set train.optimizer=adamw"
            )


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
