"""A run that begins with the adapters of an earlier one (`model.lora.start_from`), in place of new ones."""

import json
from pathlib import Path
from typing import Any

import torch

from data_tools.errors import UserError
from sft.config_model import LoraConfig

_OTHERWISE = {
    "use_dora": "DoRA",
    "use_rslora": "rank-stabilized scaling",
    "rank_pattern": "ranks of single layers",
    "alpha_pattern": "alphas of single layers",
}
"""What peft can do and `model.lora` does not: the same weights would compute something else."""


def fill_adapters(view: Any, lora: LoraConfig, trains_embeddings: bool) -> None:
    """Fill new adapters, and embedding and output layer where they are trained, from a folder that peft wrote.

    Args:
        view: what `add_lora` returned.

    Raises:
        UserError: the folder holds no adapter, or one of another shape, place or scale than `model.lora` asks for.
    """
    import peft
    from peft.utils import load_peft_weights

    assert lora.start_from is not None
    folder = Path(lora.start_from)
    where = f"model.lora.start_from={folder}"
    if not (folder / "adapter_config.json").is_file():
        raise UserError(f"{where}: no adapter_config.json is there; `shardtune export RUN --adapter` writes adapter/")
    saved = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    for key, feature in _OTHERWISE.items():
        if saved.get(key):
            raise UserError(f"{where}: it was trained with {feature} ({key}), which model.lora has not")
    for key, name in (("rank", "r"), ("alpha", "lora_alpha")):
        if saved.get(name) != (asked := getattr(lora, key)):
            raise UserError(
                f"{where}: it has {key} {saved.get(name)}, model.lora.{key} is {asked}; "
                f"set model.lora.{key}={saved.get(name)}"
            )
    expected = peft.get_peft_model_state_dict(view, save_embedding_layers=trains_embeddings)
    weights: dict[str, torch.Tensor] = load_peft_weights(str(folder), device="cpu")
    if missing := sorted(expected.keys() - weights.keys()):
        raise UserError(f"{where}: it has no {missing[0]}; model.lora.target and embeddings must be what it has")
    if more := sorted(weights.keys() - expected.keys()):
        raise UserError(f"{where}: its {more[0]} has no place; model.lora.target and embeddings must be what it has")
    for name, weight in weights.items():
        if weight.shape != expected[name].shape:
            shapes = f"{tuple(weight.shape)}, the model needs {tuple(expected[name].shape)}"
            raise UserError(f"{where}: {name} has the shape {shapes}: it is of another base model")
    peft.set_peft_model_state_dict(view, weights)
