"""Checkpoint → the model it holds, whole and on the CPU, as transformers or peft has it."""

from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig
from transformers.utils import GENERATION_CONFIG_NAME

from data_tools.chat import ChatTemplate
from data_tools.errors import UserError
from data_tools.files import is_hub_id
from data_tools.hub import cached
from data_tools.tokenizer import template_of
from sft.answers import stop_tokens
from sft.best import best_validation
from sft.config_model import ModelConfig
from sft.copies import Copies
from sft.digests import COMMIT, find_damage
from sft.engine import consolidated_weights
from sft.lora import add_lora, load_trained
from sft.model import load_config, load_model
from sft.new_tokens import add_rows
from sft.newest import bring, newest_good_checkpoint
from sft.own_code import build_model
from sft.progress import checkpoint_path, committed_checkpoints, read_progress
from sft.run import TrainingRun
from sft.world import World

_ALONE = World(0, 1, torch.device("cpu"))


def choose_checkpoint(run: TrainingRun, best: bool = False, step: int | None = None) -> Path:
    """The newest checkpoint that is whole, or the best, or that of a step; its copy, where none is here.

    Raises:
        UserError: there is no such checkpoint, or it is damaged.
    """
    settings = run.checkpoint
    gone = settings.copy_to is not None and (settings.node_local or not committed_checkpoints(run.checkpoints))
    copies = Copies(run.folder, run.checkpoint) if gone else None
    if settings.node_local and copies is not None:  # what is here is a node's part
        _bring_back(run, copies, max(copies.names(), default=None))
    if step is not None:
        return _checkpoint_of(run, step, copies)
    checkpoint = newest_good_checkpoint(run.checkpoints, _ALONE, copies, reading=True)
    if checkpoint is not None and best:
        checkpoint = _best_checkpoint(run, checkpoint)
    if checkpoint is None:
        raise UserError(f"{run.folder} has no checkpoint; train first: `shardtune train {run.folder}`")
    return checkpoint


def _bring_back(run: TrainingRun, copies: Copies | None, name: str | None) -> None:
    """Fetch a copy of this name, if there is one."""
    if copies is None or name is None or name not in copies.names():
        return
    if trouble := bring(name, run.checkpoints, _ALONE, copies):
        raise UserError(f"{name} is not in {run.folder}, and could not be fetched: {trouble}")


def _checkpoint_of(run: TrainingRun, step: int, copies: Copies | None) -> Path:
    checkpoint = checkpoint_path(run.checkpoints, step)
    _bring_back(run, copies, checkpoint.name)
    if not checkpoint.exists():
        there = ", ".join(str(int(path.name.removeprefix("step-"))) for path in committed_checkpoints(run.checkpoints))
        raise UserError(f"{run.folder} has no checkpoint of step {step}; it has those of {there or 'no step'}")
    if (damage := find_damage(checkpoint, _ALONE)) is not None:
        raise UserError(f"{checkpoint} is damaged ({damage}); choose another step")
    return checkpoint


def _best_checkpoint(run: TrainingRun, newest: Path) -> Path:
    """The best of all evaluations up to the newest checkpoint, which knows them all."""
    if not run.checkpoint.keep_best:
        raise UserError(
            f"{run.folder} was trained without checkpoint.keep_best, so its best checkpoint may be deleted; "
            "leave out --best for the newest"
        )
    best = best_validation(read_progress(newest).validations)
    if best is None:
        raise UserError(f"{run.folder} was not evaluated up to {newest.name}; leave out --best for the newest")
    checkpoint = checkpoint_path(run.checkpoints, best[0])
    if not (checkpoint / COMMIT).exists() and run.checkpoint.copy_to is not None:
        _bring_back(run, Copies(run.folder, run.checkpoint), checkpoint.name)
    damage = find_damage(checkpoint, _ALONE) if (checkpoint / COMMIT).exists() else "it is missing"
    if damage is not None:
        raise UserError(f"{checkpoint}, the best checkpoint, is damaged ({damage}); leave out --best for the newest")
    return checkpoint


def load_trained_model(
    run: TrainingRun, checkpoint: Path, tokenizer: Any, dtype: torch.dtype, adapter: bool = False
) -> Any:
    """The trained model on the CPU, whole (adapters merged) or as peft's view of its adapters."""
    vocab_size, added = run.store.vocab_size, run.store.added_tokens
    saved = consolidated_weights(checkpoint, read_progress(checkpoint).zero_stage)
    # The engine's module is `PackedCausalLM`, which holds the model under `model`.
    weights = {name.removeprefix("model."): tensor.to(dtype) for name, tensor in saved.items()}
    if run.model.lora is None:
        model = build_model(run.model, load_config(run.model, tokenizer, vocab_size, added), dtype=dtype)
        if run.model.path is not None:
            add_rows(model, vocab_size, added)
        model.load_state_dict(weights)
    else:
        model = load_model(run.model, tokenizer, vocab_size, added, dtype, run.train.seed)
        if run.model.quantize is not None and not adapter:
            model = model.dequantize(dtype)  # what the adapters were trained on
        view = add_lora(model, run.model.lora, added)
        load_trained(model, weights)
        if adapter:
            return view
        model = view.merge_and_unload()
    template = ChatTemplate(template_of(tokenizer), tokenizer.special_tokens_map, run.template_date)
    model.generation_config = _generation_config(run, tokenizer, template)
    return model


def _generation_config(run: TrainingRun, tokenizer: Any, template: ChatTemplate) -> GenerationConfig:
    """The base model's own, with the tokens that end a turn and the padding of this tokenizer."""
    values: dict[str, Any] = {}
    if file := _file_of_model(run.model, GENERATION_CONFIG_NAME):
        values = GenerationConfig.from_pretrained(file.parent).to_diff_dict()
    values |= {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": stop_tokens(tokenizer, template),
        "pad_token_id": tokenizer.pad_token_id,
    }
    return GenerationConfig(**values)


def _file_of_model(config: ModelConfig, name: str) -> Path | None:
    """A file that lies beside the weights that training began with, if there is one."""
    if config.path is None:
        return None
    if is_hub_id(config.path):
        found = cached("model", config.path, config.revision or "main", [name])
        return found[name] if found else None
    file = Path(config.path) / name
    return file if file.exists() else None
