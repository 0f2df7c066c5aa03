"""Tiny models of the architecture that tests train."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from data_tools.plan import NO_PACK, PackPlan, PackTable
from data_tools.store import TokenStore
from sft.batches import Batch

IGNORE = -100
"""Stands where nothing is learnt."""


def tiny_llama(tied: bool, vocab_size: int = 400) -> LlamaForCausalLM:
    """Two layers with grouped keys, the same weights every time."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=tied,
        initializer_range=0.2,
    )
    return LlamaForCausalLM(config)


def loss_alone(model: LlamaForCausalLM, store: TokenStore, document: int) -> torch.Tensor:
    """Weighted sum of cross-entropies over a document's trained tokens: alone, by plain transformers and torch."""
    stored = store.document(document)
    input_ids = torch.tensor(stored.input_ids.astype("int64"))[None]
    of_run = torch.zeros(len(stored.mask_runs))
    of_run[1::2] = 1 if stored.weights is None else torch.tensor(stored.weights)
    weights = torch.repeat_interleave(of_run, torch.tensor(stored.mask_runs))
    logits = model(input_ids).logits[0, :-1]
    losses = torch.nn.functional.cross_entropy(logits, input_ids[0, 1:], reduction="none")
    return (losses * weights[1:]).sum()


def labels_of(batch: Batch) -> torch.Tensor:
    """[1, T]: at each place the token that is learnt there, or `IGNORE`."""
    labels = torch.full_like(batch.input_ids, IGNORE)
    labels[0, batch.targets.places] = batch.targets.labels
    return labels


def weights_of(batch: Batch) -> torch.Tensor:
    """[1, T]: what the loss of each place counts; 0 where nothing is learnt."""
    weights = torch.zeros(batch.input_ids.shape)
    weights[0, batch.targets.places] = 1.0 if batch.targets.weights is None else batch.targets.weights
    return weights


def documents_of(table: PackTable, packs: list[int]) -> list[int]:
    """The documents of some packs."""
    return [int(number) for pack in packs for number in table.packs[pack]]


def crowded_packs(table: PackTable, count: int) -> list[int]:
    """The packs with the most documents."""
    sizes = table.packs.offsets[1:] - table.packs.offsets[:-1]
    return [int(pack) for pack in (-sizes).argsort(kind="stable")[:count]]


def uneven_last_step(plan: PackPlan) -> int:
    """The last, incomplete step of an epoch, with packs of which some have few labels and some many."""
    for epoch in range(100):
        step = (epoch + 1) * plan.steps_per_epoch - 1
        packs = plan.packs_of_step(step)
        labels = plan.train.trained[packs[packs != NO_PACK]]
        if labels.max() > 4 * labels.min():
            return step
    raise AssertionError("no epoch ends with an uneven step")
