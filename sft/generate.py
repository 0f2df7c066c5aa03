"""Answers from an exported model, as plain transformers gives them."""

from collections.abc import Sequence
from datetime import date
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from data_tools.chat import ChatTemplate
from data_tools.errors import UserError
from data_tools.tokenizer import load_tokenizer, template_of
from sft.answers import answer


def generate_answers(
    model_folder: Path, prompts: Sequence[str], max_new_tokens: int, today: date, trust_remote_code: bool = False
) -> list[dict[str, str]]:
    """Answer every prompt greedily.

    Args:
        model_folder: an exported model.
        prompts: user messages.
        today: what the template's `strftime_now` answers.
        trust_remote_code: run the code that was exported with the model.

    Raises:
        UserError: there is no model in the folder.
    """
    if not (model_folder / "config.json").exists():
        raise UserError(f"there is no exported model in {model_folder}; run `shardtune export` first")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tokenizer = load_tokenizer(str(model_folder))
    template = ChatTemplate(template_of(tokenizer), tokenizer.special_tokens_map, today)
    model = (
        AutoModelForCausalLM.from_pretrained(model_folder, dtype="auto", trust_remote_code=trust_remote_code)
        .to(device)
        .eval()
    )
    with torch.no_grad():
        return [
            {"prompt": prompt, "answer": answer(model, tokenizer, template, prompt, max_new_tokens, device)}
            for prompt in prompts
        ]
