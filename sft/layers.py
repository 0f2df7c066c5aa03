"""What is done to a model's layers to save memory."""

from transformers import PreTrainedModel

from data_tools.errors import UserError
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
