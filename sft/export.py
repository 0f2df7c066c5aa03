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
from data_tools.tokenizer import load_tokenizer
from sft.checkpoint import best_checkpoint, find_damage, newest_good_checkpoint, read_progress
from sft.engine import consolidated_weights
from sft.evaluate import stop_tokens
from sft.model import load_config
from sft.run import TrainingRun

_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 5e-2}
"""Largest difference of logits, as a share of the largest logit: packed and plain attention round differently."""


def export_model(run: TrainingRun, best: bool = False) -> Path:
    """Export a checkpoint to `model/` in the run's folder; what was there before is replaced at the end.

    Args:
        best: the one with the lowest validation loss, in place of the newest.

    Raises:
        UserError: there is no such checkpoint, or the exported model does not compute what the trained one did.
    """
    checkpoint = _best_checkpoint(run) if best else newest_good_checkpoint(run.checkpoints)
    if checkpoint is None:
        raise UserError(f"{run.folder} has no checkpoint to export; train first: `shardtune train {run.folder}`")
    final, partial = run.folder / "model", run.folder / "model.partial"
    shutil.rmtree(partial, ignore_errors=True)
    probe = torch.load(checkpoint / "probe.pt", weights_only=True)
    _write_model(run, checkpoint, partial, probe["dtype"])
    compare_with_trained(partial, probe)
    compare_tokenizers(partial, load_tokenizer(str(run.store.folder / "tokenizer")))
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
    if best is not None and (damage := find_damage(best)) is not None:
        raise UserError(f"{best}, the best checkpoint, is damaged ({damage}); leave out --best for the newest")
    return best


def _write_model(run: TrainingRun, checkpoint: Path, folder: Path, dtype: torch.dtype) -> None:
    tokenizer = load_tokenizer(str(run.store.folder / "tokenizer"))
    template = ChatTemplate(str(tokenizer.chat_template), tokenizer.special_tokens_map, run.template_date)
    config = load_config(run.model, tokenizer, run.store.vocab_size)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    weights = consolidated_weights(checkpoint, read_progress(checkpoint).zero_stage)
    # The engine's module is `PackedCausalLM`, which holds the model under `model`.
    model.load_state_dict({name.removeprefix("model."): tensor.to(dtype) for name, tensor in weights.items()})
    model.generation_config = _generation_config(run, tokenizer, template)
    model.save_pretrained(folder)
    save_tokenizer(tokenizer, folder)


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
def compare_with_trained(folder: Path, probe: dict[str, Any]) -> None:
    """Load the exported folder as anyone would, and compare its logits with those that training kept.

    Raises:
        UserError: they differ by more than rounding.
    """
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=probe["dtype"]).eval()
    logits = model(probe["input_ids"]).logits.float()
    trained = probe["logits"]
    if logits.shape != trained.shape:
        raise UserError(f"{folder}: logits of shape {tuple(logits.shape)}, in training {tuple(trained.shape)}")
    difference = float((logits - trained).abs().max() / trained.abs().max())
    if not difference <= _TOLERANCE[probe["dtype"]]:
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
