"""Models that bring their own Python code: it runs only where the configuration names it."""

from typing import Any

import torch
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from data_tools.errors import UserError
from data_tools.hub import model_folder
from sft.config_model import ModelConfig


def code_arguments(config: ModelConfig) -> dict[str, Any]:
    """For `from_pretrained`: whether a model's own code may run, and of which commit."""
    # Said in any case: where it is not, transformers asks at the terminal.
    return {"trust_remote_code": config.trust_remote_code, "code_revision": config.revision}


def build_model(config: ModelConfig, model_config: PretrainedConfig, **others: Any) -> PreTrainedModel:
    """A model with random weights."""
    own = "AutoModelForCausalLM" in (getattr(model_config, "auto_map", None) or {})
    known = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(model_config), None)
    is_here = known is not None and not known.__module__.startswith("transformers.")  # it was loaded before
    # Classes that are here would take the commit for an argument of theirs.
    code = code_arguments(config) if own and not is_here else {}
    model: PreTrainedModel = AutoModelForCausalLM.from_config(model_config, **code, **others)
    return model


def empty_model(config: ModelConfig, model_config: PretrainedConfig) -> PreTrainedModel:
    """A model without weights, in no time: what layers it has, and of which sizes."""
    with torch.device("meta"):
        return build_model(config, model_config)


def check_code(config: ModelConfig) -> None:
    """Look at a model's `config.json` before anything of it runs.

    Raises:
        UserError: the model has code that may not run, or that lies where `model.revision` does not reach.
    """
    folder = model_folder(str(config.path), config.revision)
    values, _ = PretrainedConfig.get_config_dict(folder, revision=config.revision)
    named = values.get("auto_map") or {}
    classes = [named[name] for name in ("AutoConfig", "AutoModelForCausalLM") if name in named]
    known = values.get("model_type") in _known_types()
    if not classes or (known and not config.trust_remote_code):
        return  # transformers' own class is taken
    if not config.trust_remote_code:
        raise UserError(
            f"model.path: {config.path} brings Python code of its own; read it, and set model.trust_remote_code=true "
            f"(for a model of the hub with model.revision=COMMIT), or choose a model that transformers knows"
        )
    if elsewhere := [name for name in classes if "--" in name]:
        raise UserError(
            f"model.path: the code of {config.path} lies in another repository, {elsewhere[0].split('--')[0]}, of "
            f"which model.revision names no commit; copy model and code into one folder, and give that"
        )


def _known_types() -> set[str]:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
