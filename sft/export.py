"""Checkpoint → a folder that plain transformers loads, proved by its logits."""

import os
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from data_tools.errors import UserError
from data_tools.piece_models import PROBES, same_ids, save_tokenizer
from data_tools.tokenizer import load_tokenizer
from sft.config_model import ModelConfig
from sft.lora import quantization
from sft.probe import difference_of_logits, same_logits
from sft.run import TrainingRun
from sft.trained import choose_checkpoint, load_trained_model


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
    checkpoint = choose_checkpoint(run, best)
    final = run.folder / ("adapter" if adapter else "model")
    partial = final.with_name(final.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    probe = torch.load(checkpoint / "probe.pt", weights_only=True)
    tokenizer = load_tokenizer(str(run.store.folder / "tokenizer"))
    model = load_trained_model(run, checkpoint, tokenizer, probe["dtype"], adapter)
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


def _allow_reading(folder: Path) -> None:
    """safetensors writes for the owner alone; a model is as open as any file that the user makes."""
    umask = os.umask(0)
    os.umask(umask)
    for path in folder.iterdir():
        path.chmod(0o666 & ~umask)


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
