"""Low-rank adapters by peft: put into a model for training, filled again and merged for export.

peft replaces layers of the model where they are; the model stays what it was to everything around it. Embedding and
output layer, where they are trained as well, are the model's own and get no wrapper: tied weights stay one tensor, and
the loss head finds the weight it needs.
"""

import importlib.util
from collections.abc import Mapping
from typing import Any

import torch
from transformers import PreTrainedModel

from data_tools.errors import UserError
from sft.config_model import LoraConfig, ModelConfig


def check_packages(config: ModelConfig) -> None:
    """Say before anything is loaded what `model.lora` and `model.quantize` lack.

    Raises:
        UserError: a package is not installed.
    """
    if config.lora is not None and importlib.util.find_spec("peft") is None:
        raise UserError("model.lora needs peft: pip install 'shardtune[lora]'")
    if config.quantize is not None and importlib.util.find_spec("bitsandbytes") is None:
        raise UserError("model.quantize needs bitsandbytes: pip install bitsandbytes; or leave it out")


def check_quantize(config: ModelConfig, zero_stage: int, device: torch.device) -> None:
    """What only some devices and settings can do with weights of 4 bits.

    Raises:
        UserError: it is asked for where it cannot be done.
    """
    if config.quantize is None:
        return
    if zero_stage == 3:
        raise UserError("model.quantize: ZeRO-3 does not split weights of 4 bits; set train.zero.stage=2")
    if device.type != "cuda":
        # On some CPUs its layers change at the first evaluation to a form that lets no gradient through.
        raise UserError("model.quantize: bitsandbytes trains on GPUs only; leave it out")


def quantization(config: ModelConfig, dtype: torch.dtype) -> dict[str, Any]:
    """Arguments of `from_pretrained`: linear layers but the last in 4 bits, products in `dtype`."""
    if config.quantize is None:
        return {}
    from transformers import BitsAndBytesConfig

    return {
        "quantization_config": BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=config.quantize,
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    }


def add_lora(model: PreTrainedModel, lora: LoraConfig, added_tokens: int) -> Any:
    """Put adapters into a model, in place, and freeze all else; returns peft's view of it.

    Args:
        added_tokens: of `data.special_tokens`, whose rows in embedding and output layer nobody has trained yet.

    Raises:
        UserError: `model.lora.target` names no layer, or one that cannot have an adapter.
    """
    import peft

    peft_config = peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.target,
    )
    _check_target(model, lora.target)
    try:
        # Adapters in float32 beside weights in bfloat16 are not for DeepSpeed, which keeps float32 copies itself.
        view = peft.get_peft_model(model, peft_config, autocast_adapter_dtype=False)
    except ValueError as error:
        reason = " ".join(str(error).split())
        raise UserError(f"model.lora.target={lora.target} matches what can have no adapter: {reason[:200]}") from None
    if trains_embeddings(lora, added_tokens):
        for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
            layer.requires_grad_(True)
    return view


def trains_embeddings(lora: LoraConfig, added_tokens: int) -> bool:
    """Whether embedding and output layer are trained beside the adapters."""
    return added_tokens > 0 if lora.embeddings is None else lora.embeddings


def _check_target(model: PreTrainedModel, target: str | list[str]) -> None:
    """peft says nothing of names in a list that match no layer while others do, and nothing of the output layer, whose
    adapter the loss would pass by.
    """
    if target == "all-linear":
        return
    from peft import LoraConfig as PeftLora
    from peft.tuners.tuners_utils import check_target_module_exists

    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    names = {name: module for name, module in model.named_modules() if name}
    for part in [target] if isinstance(target, str) else target:
        one = PeftLora(target_modules=part if isinstance(target, str) else [part])
        found = [name for name in names if check_target_module_exists(one, name)]
        if not found:
            linear = {name.rsplit(".", 1)[-1] for name, module in names.items() if isinstance(module, torch.nn.Linear)}
            raise UserError(
                f"model.lora.target: {part!r} matches no layer; the linear layers are {', '.join(sorted(linear))}; "
                f"a text is all-linear or a regular expression of whole names"
            )
        if at_ends := [name for name in found if names[name] in ends]:
            raise UserError(
                f"model.lora.target: {part!r} matches {at_ends[0]}, embedding or output layer, which get no adapters; "
                f"set model.lora.embeddings=true to train them whole"
            )


def load_trained(model: PreTrainedModel, weights: Mapping[str, torch.Tensor]) -> None:
    """Fill what is trained of a model.

    Raises:
        UserError: these are the weights of another model.
    """
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    shapes = {name: parameter.shape for name, parameter in trained.items()}
    found = {name: weights[name].shape for name in weights if name in trained}
    if shapes != found:
        wrong = next(name for name, shape in shapes.items() if found.get(name) != shape)
        raise UserError(f"the checkpoint has no {wrong} of shape {tuple(shapes[wrong])}: it is of another model")
    with torch.no_grad():
        for name, parameter in trained.items():
            parameter.copy_(weights[name])
