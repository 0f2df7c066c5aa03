"""Validation loss and sample answers of the model in training."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from data_tools.balance import costliest_first
from data_tools.chat import ChatTemplate
from data_tools.plan import PackPlan
from data_tools.store import TokenStore
from sft.batches import make_batch
from sft.model import PackedCausalLM
from sft.world import World

PROBE_TOKENS = 128
"""Tokens whose logits a checkpoint keeps for exports to compare with."""
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 5e-2}
"""Largest difference of logits, as a share of the largest logit: packed and plain attention round differently."""


@torch.no_grad()
def validation_loss(
    engine: Any, store: TokenStore, plan: PackPlan, world: World, between: Callable[[], None]
) -> float | None:
    """Weighted mean cross-entropy over the trained tokens of the validation packs, over all ranks; None without packs.

    Every rank takes every W-th pack, the costliest first, and an empty one where there is none left: ZeRO-3 needs all
    ranks in every pass.

    Args:
        between: called before each pass; it may raise.
    """
    packs = len(plan.validation)
    if not packs:
        return None
    engine.eval()
    loss_sum = torch.zeros((), dtype=torch.float64)
    order = costliest_first(np.arange(packs), plan.validation.cost)
    try:
        for first in range(0, packs, world.size):
            between()
            mine = order[first + world.rank : first + world.rank + 1]
            batch = make_batch(store, plan.validation, mine).to(world.device)
            batch_loss, _ = engine(*batch.model_inputs)
            loss_sum += batch_loss.double().cpu()
    finally:
        engine.train()
    (total,) = world.sum(loss_sum)
    return total / float(plan.validation.weight.sum())


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
) -> list[dict[str, str]]:
    """Answer prompts greedily.

    Args:
        synced: no rank leaves a pass that others are still in (ZeRO-3 needs that).
        between: called before each prompt; it may raise.
    """
    answers = []
    with _plain_attention(model):
        for prompt in prompts:
            between()
            text = answer(model.model, tokenizer, template, prompt, max_new_tokens, device, synced)
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
) -> str:
    """One greedy answer to one user message, without the end-of-turn token."""
    text = template.prompt([{"role": "user", "content": prompt}])
    ids = torch.tensor([tokenizer.encode(text, add_special_tokens=False)], device=device)
    output = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=max_new_tokens,
        do_sample=False,
        eos_token_id=stop_tokens(tokenizer, template),
        pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id,
        synced_gpus=synced,
    )
    return str(tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)).strip()


def stop_tokens(tokenizer: Any, template: ChatTemplate) -> list[int]:
    """The tokens that end an answer: the tokenizer's own end, and the template's end of a turn."""
    ends = {tokenizer.eos_token_id}
    if template.end_of_turn in tokenizer.get_vocab():
        ends.add(tokenizer.convert_tokens_to_ids(template.end_of_turn))
    return sorted(ends - {None})


@contextmanager
def _plain_attention(model: PackedCausalLM) -> Iterator[None]:
    """Generation keeps a cache of keys, which packed rows have not."""
    model.eval()
    # Capped scores and attention sinks are only in transformers' own attention.
    model.model.set_attn_implementation("sdpa" if model.model._supports_sdpa else "eager")
    try:
        yield
    finally:
        model.model.set_attn_implementation(model.attention)
        model.train()


@torch.no_grad()
def probe_logits(model: PackedCausalLM, store: TokenStore, device: torch.device) -> dict[str, Any]:
    """The first tokens of the store's first document, and the model's logits for them; all ranks call it."""
    ids = torch.from_numpy(store.document(0).input_ids[:PROBE_TOKENS].astype(np.int64))[None].to(device)
    length = ids.shape[1]
    model.eval()
    logits = model.logits(
        ids,
        torch.arange(length, device=device)[None],
        torch.tensor([0, length], dtype=torch.int32, device=device),
        length,
    )
    model.train()
    return {"input_ids": ids.cpu(), "logits": logits.float().cpu(), "dtype": logits.dtype}


def difference_of_logits(logits: torch.Tensor, probe: dict[str, Any]) -> float:
    """Largest difference from what `probe_logits` gave, as a share of the largest logit."""
    trained = probe["logits"]
    return float((logits - trained).abs().max() / trained.abs().max())


def same_logits(logits: torch.Tensor, probe: dict[str, Any]) -> bool:
    """Whether logits are those of a probe, but for rounding."""
    return logits.shape == probe["logits"].shape and difference_of_logits(logits, probe) <= TOLERANCE[probe["dtype"]]
