"""What is done to a model's layers to save memory and time."""

import os
import shutil

import torch
from transformers import PreTrainedModel
from transformers.integrations.liger import apply_liger_kernel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import is_liger_kernel_available

from data_tools.errors import UserError
from sft.attention import PACKED, packed_attention
from sft.config import TrainConfig


def forget_activations(model: PreTrainedModel, train: TrainConfig) -> None:
    """Layers keep only what they were given, and compute the rest again in the backward pass, with the same dropout.

    With `activation_checkpointing` n, every n-th layer does, from the first.

    Raises:
        UserError: this kind of model cannot.
    """
    if not train.activation_checkpointing:
        return
    try:
        model.activation_checkpointing_enable(every_n_layers=int(train.activation_checkpointing))
    except ValueError as error:
        raise UserError(f"train.activation_checkpointing: {' '.join(str(error).split())}; leave it out") from None


def check_compiler(train: TrainConfig) -> None:
    """What is compiled when it first runs needs a compiler.

    Raises:
        UserError: there is none.
    """
    compiler = os.environ.get("CXX", "g++")  # Triton needs one as well, for what starts its kernels
    if shutil.which(compiler) is not None:
        return
    needed = f"needs the C++ compiler {compiler} on every node; install it, or"
    if train.compile:
        raise UserError(f"train.compile {needed} leave it out")
    if train.optimizer == "muon":  # DeepSpeed compiles its updates
        raise UserError(f"train.optimizer=muon {needed} set train.optimizer=adamw")


def compile_layers(model: PreTrainedModel, train: TrainConfig) -> None:
    """Compile each layer in place, one program for all that are alike, with rows of any length.

    Attention stays as it is: where documents end is not known to a program, and its kernels are as fast as they get.

    Raises:
        UserError: this kind of model has no layers of the usual form.
    """
    if not train.compile:
        return
    layers = [layer for layer in model.modules() if isinstance(layer, GradientCheckpointingLayer)]
    if not layers:
        raise UserError(f"train.compile: {type(model).__name__} has no layers that it knows; leave it out")
    ALL_ATTENTION_FUNCTIONS.register(PACKED, torch.compiler.disable(packed_attention))
    for layer in layers:
        layer.compile(dynamic=True)


def check_liger(train: TrainConfig, device: torch.device) -> None:
    """Whether Liger's kernels can run here.

    Raises:
        UserError: they cannot.
    """
    if not train.liger:
        return
    if device.type != "cuda":
        raise UserError("train.liger: its kernels run on GPUs only; leave it out")
    if not is_liger_kernel_available():
        raise UserError("train.liger needs `pip install liger-kernel` on every node; or leave it out")


def use_liger(model: PreTrainedModel, train: TrainConfig) -> None:
    """Liger's norms, rotary positions and activations; the loss stays ours, which skips untrained tokens.

    Raises:
        UserError: it has none for this kind of model.
    """
    if not train.liger:
        return
    from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN

    kind = model.config.model_type
    if kind not in MODEL_TYPE_TO_APPLY_LIGER_FN:
        raise UserError(f"train.liger: liger-kernel has no kernels for models of type {kind}; leave it out")
    apply_liger_kernel(model, {"cross_entropy": False, "fused_linear_cross_entropy": False})
