"""Models whose parameters have names and shapes, but no memory: with ZeRO-3 only the main rank reads the weights.

main rank     whole model in the machine's memory ─┐ one parameter after the other (`engine.split_model`)
all others    hollow model                         ─┴► every rank has its part of each
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from data_tools.errors import UserError
from sft.config_model import ModelConfig
from sft.digests import from_main
from sft.lora import check_packages
from sft.model import load_config, model_hash
from sft.new_tokens import add_rows
from sft.own_code import build_model
from sft.world import World


def hollow_model(
    config: ModelConfig, tokenizer: PreTrainedTokenizerBase, vocab_size: int, added: int, dtype: torch.dtype
) -> PreTrainedModel:
    """The model that `load_model` of the same arguments gives, hollow; what is computed when it is built (buffers) is
    there.
    """
    check_packages(config)
    model_config: PretrainedConfig = load_config(config, tokenizer, vocab_size, added)
    with _parameters_without_memory():
        model = build_model(config, model_config, dtype=dtype)
    if config.path is not None:
        add_rows(model, vocab_size, added)
    return model.train()


@contextmanager
def _parameters_without_memory() -> Iterator[None]:
    """Parameters lose their memory as soon as a module has them."""
    register = torch.nn.Module.register_parameter

    def register_hollow(module: torch.nn.Module, name: str, parameter: torch.nn.Parameter | None) -> None:
        if parameter is not None and not parameter.is_meta:  # tied ones stay one
            parameter = torch.nn.Parameter(parameter.to("meta"), parameter.requires_grad)
        register(module, name, parameter)

    torch.nn.Module.register_parameter = register_hollow  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.nn.Module.register_parameter = register  # type: ignore[method-assign]


def share_what_is_no_parameter(model: PreTrainedModel, world: World) -> None:
    """All ranks get the main rank's buffers and settings of generation, which may have come with its weights.

    Raises:
        UserError: the model that the weights were read into has other parameters than the hollow one.
    """
    shapes, buffers, generation = from_main(
        world, (model_hash(model), dict(model.named_buffers()), model.generation_config) if world.is_main else None
    )
    own = dict(model.named_buffers())
    if shapes != model_hash(model) or own.keys() != buffers.keys():
        raise UserError(
            f"train.zero.stage=3: {type(model).__name__} has other parameters with its weights than by its "
            f"configuration alone, so it cannot be split while it is loaded; set train.zero.stage=2"
        )
    for name, buffer in own.items():
        buffer.copy_(buffers[name])
    model.generation_config = generation
