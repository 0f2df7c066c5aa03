"""Evaluate a checkpoint, or any model, on the held-out documents of a run, in one process."""

import importlib.util
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from data_tools.chat import ChatTemplate
from data_tools.errors import UserError
from data_tools.files import is_hub_id
from data_tools.piece_models import PROBES, same_ids
from data_tools.tokenizer import load_tokenizer, template_of
from sft.answers import plain_attention, stop_tokens
from sft.attention import choose_attention
from sft.config_model import ModelConfig
from sft.fits import check_weights_fit
from sft.model import PackedCausalLM, check_length, compute_dtype, load_config, load_model
from sft.products import multiply_by_onednn
from sft.run import TrainingRun
from sft.scores import answer_documents, check_scores, choose_documents, score
from sft.self_test import check_documents_are_apart
from sft.trained import choose_checkpoint, load_trained_model
from sft.validate import validate
from sft.world import World


def evaluate(
    run: TrainingRun, model: str | None, best: bool, step: int | None, answers: int, tasks: list[str]
) -> dict[str, Any]:
    """Metrics of `validate`; with answers also `scores` and the answers; with tasks what lm-eval says of them.

    Args:
        model: a folder or hub id in place of a checkpoint of the run.
        best: the checkpoint of the lowest validation loss, in place of the newest.
        step: the checkpoint of this step.
        answers: how many held-out conversations are answered.
        tasks: of lm-eval, by name; `folder/name` for one of the user's own.

    Raises:
        UserError: there is nothing to evaluate, or a package is not installed.
    """
    _check_asked(run, answers, tasks)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tokenizer = load_tokenizer(str(run.store.folder / "tokenizer"))
    name, loaded = _load(run, tokenizer, device, model, best, step)
    if device.type == "cpu":
        multiply_by_onednn(loaded.config.get_text_config().hidden_size)
    attention = choose_attention(run.model.attention, loaded.config, device)
    packed = PackedCausalLM(loaded, attention).to(device)
    check_documents_are_apart(packed, device, alone=run.plan.settings.packing == "none")
    found: dict[str, Any] = {"model": name, **validate(packed, run.store, run.plan, World(0, 1, device), lambda: None)}
    with torch.no_grad(), plain_attention(packed):
        if answers:
            template = ChatTemplate(template_of(tokenizer), tokenizer.special_tokens_map, run.template_date)
            documents = choose_documents(run.store, run.plan, answers)
            ends, longest = stop_tokens(tokenizer, template), run.evaluate.max_new_tokens
            said = answer_documents(loaded, tokenizer, run.store, documents, ends, longest)
            found |= {"scores": score(said), "answers": [asdict(answered) for answered in said]}
        if tasks:
            found["lm_eval"] = _run_tasks(loaded, tokenizer, tasks)
    return found


def _check_asked(run: TrainingRun, answers: int, tasks: list[str]) -> None:
    if answers:
        check_scores()
    if tasks and importlib.util.find_spec("lm_eval") is None:
        raise UserError("--lm-eval needs lm-eval: pip install 'shardtune[lm-eval]'")
    if not len(run.plan.validation) and not tasks:
        raise UserError(f"{run.folder} holds no documents out; set data.validation and plan again, or give --lm-eval")


def _load(
    run: TrainingRun, tokenizer: Any, device: torch.device, model: str | None, best: bool, step: int | None
) -> tuple[str, Any]:
    """What it is, and the model on the CPU as plain transformers has it."""
    if model is None:
        checkpoint = choose_checkpoint(run, best, step)
        dtype = torch.load(checkpoint / "probe.pt", weights_only=True)["dtype"]
        return checkpoint.name, load_trained_model(run, checkpoint, tokenizer, dtype)
    if not Path(model).exists() and not is_hub_id(model):
        raise UserError(f"--model: there is no folder {model}")
    if model == run.model.path:  # as it was before training, of its revision and with its code
        config = run.model.model_copy(update={"lora": None, "quantize": None})
    else:
        config = ModelConfig(path=model, dtype=run.model.dtype)
    dtype = compute_dtype(config, device)
    model_config = load_config(config, tokenizer, run.store.vocab_size, 0)
    check_length(model_config, run.plan.settings.max_length)
    check_weights_fit(config, model_config, dtype, device)
    if not same_ids(load_tokenizer(model, "chatml"), tokenizer, PROBES):
        raise UserError(f"{model} has another tokenizer than the store of {run.folder}: its ids mean something else")
    return model, load_model(config, tokenizer, run.store.vocab_size, 0, dtype, run.train.seed)


def _run_tasks(model: Any, tokenizer: Any, tasks: list[str]) -> dict[str, Any]:
    """lm-eval's results by task; `folder/name` is a task that a YAML file of that folder describes."""
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    paths = [Path(task) for task in tasks]
    folders = sorted({str(path.parent) for path in paths} - {"."})
    known = TaskManager(include_path=folders or None)
    if unknown := [path.name for path in paths if not known.match_tasks([path.name])]:
        raise UserError(f"--lm-eval: lm-eval knows no task {', '.join(unknown)}; `lm-eval ls tasks` lists them")
    wrapped = HFLM(pretrained=model, tokenizer=tokenizer)
    results = lm_eval.simple_evaluate(wrapped, tasks=[path.name for path in paths], task_manager=known)
    found: dict[str, Any] = results["results"]
    return found
