"""Greedy answers of a model to user messages."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import StoppingCriteria

from data_tools.chat import ChatTemplate
from sft.model import PackedCausalLM


@torch.no_grad()
def sample_answers(
    model: PackedCausalLM,
    tokenizer: Any,
    template: ChatTemplate,
    prompts: Sequence[str],
    max_new_tokens: int,
    device: torch.device,
    synced: bool,
    between: Callable[[], None],
    alive: Callable[[], None],
) -> list[dict[str, str]]:
    """Answer prompts greedily.

    Args:
        synced: no rank leaves a pass that others are still in (ZeRO-3 needs that).
        between: called before each prompt; it may raise.
        alive: called after each token.
    """
    answers = []
    with plain_attention(model):
        for prompt in prompts:
            between()
            text = answer(model.model, tokenizer, template, prompt, max_new_tokens, device, synced, alive)
            answers.append({"prompt": prompt, "answer": text})
    return answers


def answer(
    model: Any,
    tokenizer: Any,
    template: ChatTemplate,
    prompt: str,
    max_new_tokens: int,
    device: torch.device,
    synced: bool = False,
    alive: Callable[[], None] | None = None,
) -> str:
    """One greedy answer to one user message, without the end-of-turn token."""
    text = template.prompt([{"role": "user", "content": prompt}])
    ids = torch.tensor([tokenizer.encode(text, add_special_tokens=False)], device=device)
    ends = stop_tokens(tokenizer, template)
    new_ids = continue_ids(model, tokenizer, ids, ends, max_new_tokens, synced, alive)
    return str(tokenizer.decode(new_ids, skip_special_tokens=True)).strip()


def continue_ids(
    model: Any,
    tokenizer: Any,
    ids: torch.Tensor,
    ends: list[int],
    max_new_tokens: int,
    synced: bool = False,
    alive: Callable[[], None] | None = None,
) -> torch.Tensor:
    """What the model finds likeliest after ids [1, T], token by token, up to one of `ends` and with it: [N]."""
    output = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=max_new_tokens,
        do_sample=False,
        eos_token_id=ends,
        pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id,
        synced_gpus=synced,
        stopping_criteria=[] if alive is None else [_Tell(alive)],
    )
    continuation: torch.Tensor = output[0, ids.shape[1] :]
    return continuation


def stop_tokens(tokenizer: Any, template: ChatTemplate) -> list[int]:
    """The tokens that end an answer: the tokenizer's own end, and the template's end of a turn."""
    ends = {tokenizer.eos_token_id}
    if template.end_of_turn in tokenizer.get_vocab():
        ends.add(tokenizer.convert_tokens_to_ids(template.end_of_turn))
    return sorted(ends - {None})


class _Tell(StoppingCriteria):  # type: ignore[misc]
    """Ends nothing; says that a token was made."""

    def __init__(self, alive: Callable[[], None]) -> None:
        self._alive = alive

    def __call__(self, input_ids: torch.Tensor, scores: Any, **others: Any) -> torch.Tensor:
        self._alive()
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


@contextmanager
def plain_attention(model: PackedCausalLM) -> Iterator[None]:
    """Generation keeps a cache of keys, which packed rows have not."""
    model.eval()
    # Capped scores and attention sinks are only in transformers' own attention.
    model.model.set_attn_implementation("sdpa" if model.model._supports_sdpa else "eager")
    try:
        yield
    finally:
        model.model.set_attn_implementation(model.attention)
        model.train()
