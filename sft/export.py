"""Checkpoint → a folder that plain transformers loads, proved by its logits."""

import os
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase

from data_tools.chat import ChatTemplate
from data_tools.errors import UserError
from data_tools.piece_models import PROBES, same_ids, save_tokenizer
from data_tools.tokenizer import load_tokenizer, template_of
from sft.checkpoint import best_checkpoint, newest_good_checkpoint, read_progress
from sft.config_model import ModelConfig
from sft.digests import find_damage
from sft.engine import consolidated_weights
from sft.evaluate import difference_of_logits, same_logits, stop_tokens
from sft.lora import add_lora, load_trained, quantization
from sft.model import load_config, load_model
from sft.new_tokens import add_rows
from sft.own_code import build_model
from sft.run import TrainingRun
from sft.world import World

_ALONE = World(0, 1, torch.device("cpu"))


def export_model(run: TrainingRun, best: bool = False, adapter: bool = False) -> Path:
    """Export a checkpoint to `model/` in the run's folder; what was there before is replaced at the end.

    Args:
        best: the one with the lowest validation loss, in place of the newest.
        adapter: write what peft loads over the base model to `adapter/`, in place of the merged model.

    Raises:
        UserError: there is no such checkpoint, or the exported model does not compute what the trained one did.
    """
    if adapter and run.model.lora is None:
        raise UserError(f"{run.folder} trained the whole model: it has no adapter; export without --adapter")
    checkpoint = _best_checkpoint(run) if best else newest_good_checkpoint(run.checkpoints, _ALONE)
    if checkpoint is None:
        raise UserError(f"{run.folder} has no checkpoint to export; train first: `shardtune train {run.folder}`")
    final = run.folder / ("adapter" if adapter else "model")
    partial = final.with_name(final.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    probe = torch.load(checkpoint / "probe.pt", weights_only=True)
    tokenizer = load_tokenizer(str(run.store.folder / "tokenizer"))
    model = _fill_model(run, checkpoint, tokenizer, probe["dtype"], adapter)
    if adapter:
        # New rows are the adapter's as well, trained or not.
        resized = run.store.added_tokens > 0 or bool(run.model.lora and run.model.lora.embeddings)
        model.save_pretrained(partial, save_embedding_layers=resized)
    else:
        model.save_pretrained(partial)
    save_tokenizer(tokenizer, partial)
    compare_with_trained(partial, probe, run.model, adapter)
    compare_tokenizers(partial, tokenizer)
    _allow_reading(partial)
    shutil.rmtree(final, ignore_errors=True)
    os.rename(partial, final)
    return final


def _best_checkpoint(run: TrainingRun) -> Path | None:
    if not run.checkpoint.keep_best:
        raise UserError(
            f"{run.folder} was trained without checkpoint.keep_best, so its best checkpoint may be deleted; "
            "leave out --best for the newest"
        )
    best = best_checkpoint(run.checkpoints)
    if best is not None and (damage := find_damage(best, _ALONE)) is not None:
        raise UserError(f"{best}, the best checkpoint, is damaged ({damage}); leave out --best for the newest")
    return best


def _fill_model(run: TrainingRun, checkpoint: Path, tokenizer: Any, dtype: torch.dtype, adapter: bool) -> Any:
    """The trained model on the CPU, whole or as peft's view of its adapters."""
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


def _allow_reading(folder: Path) -> None:
    """safetensors writes for the owner alone; a model is as open as any file that the user makes."""
    umask = os.umask(0)
    os.umask(umask)
    for path in folder.iterdir():
        path.chmod(0o666 & ~umask)


def _generation_config(run: TrainingRun, tokenizer: Any, template: ChatTemplate) -> GenerationConfig:
    """The base model's own, with the tokens that end a turn and the padding of this tokenizer."""
    values: dict[str, Any] = {}
    if run.model.path is not None and (Path(run.model.path) / "generation_config.json").exists():
        values = GenerationConfig.from_pretrained(run.model.path).to_diff_dict()
    values |= {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": stop_tokens(tokenizer, template),
        "pad_token_id": tokenizer.pad_token_id,
    }
    return GenerationConfig(**values)


@torch.no_grad()
def compare_with_trained(folder: Path, probe: dict[str, Any], config: ModelConfig, adapter: bool = False) -> None:
    """Load the exported folder as anyone would, and compare its logits with those that training kept.

    Raises:
        UserError: they differ by more than rounding.
    """
    if adapter:
        from peft import AutoPeftModelForCausalLM as AutoModel

        below = quantization(config, probe["dtype"])
    else:
        AutoModel, below = AutoModelForCausalLM, {}
    trust = {"trust_remote_code": config.trust_remote_code}
    model = AutoModel.from_pretrained(folder, dtype=probe["dtype"], **trust, **below).eval()
    logits = model(probe["input_ids"].to(model.device)).logits.float().cpu()  # 4 bits are on a GPU where there is one
    if logits.shape != probe["logits"].shape:
        shape = tuple(probe["logits"].shape)
        raise UserError(f"{folder}: logits of shape {tuple(logits.shape)}, in training {shape}")
    if not same_logits(logits, probe):
        difference = difference_of_logits(logits, probe)
        raise UserError(f"{folder}: the exported model's logits differ from the trained model's by {difference:.1%}")


def compare_tokenizers(folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Load the exported tokenizer as anyone would, and compare its ids with those of training.

    Raises:
        UserError: they differ: beside this kind of model, transformers takes another class of tokenizers.
    """
    exported = AutoTokenizer.from_pretrained(folder)
    around = [f"{token} Hi{token}\n" for token in tokenizer.all_special_tokens]
    if not same_ids(exported, tokenizer, [*PROBES, *around]):
        kind = type(exported).__name__
        raise UserError(
            f"{folder}: transformers loads the tokenizer as a {kind} of other ids; choose another model kind"
        )
