"""A packed row computes what its documents compute alone: losses, gradients, accuracy, and no document sees another."""

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaForCausalLM

from data_tools.errors import UserError
from data_tools.plan import PackPlan
from data_tools.store import TokenStore
from sft.attention import PACKED
from sft.batches import make_batch
from sft.loss import CHUNK_LOGITS, COUNT, ENTROPY, LOSS, RIGHT, WEIGHT, TrainedTokensLoss, sums_by_source
from sft.model import PackedCausalLM
from sft.self_test import check_documents_are_apart
from tests.sft.models import crowded_packs, documents_of, loss_alone, tiny_llama


@pytest.mark.parametrize("tied", [True, False])
def test_loss_and_gradient_are_those_of_the_documents_alone(tied: bool, store: TokenStore, plan: PackPlan) -> None:
    alone = tiny_llama(tied)
    packed = PackedCausalLM(copy.deepcopy(alone))
    chosen = crowded_packs(plan.train, 2)
    batch = make_batch(store, plan.train, np.array(chosen))
    documents = documents_of(plan.train, chosen)
    assert len(documents) > 3
    loss, _ = packed(*batch.model_inputs)
    expected = torch.stack([loss_alone(alone, store, number) for number in documents]).sum()
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    loss.backward()
    expected.backward()
    for (name, parameter), reference in zip(packed.model.named_parameters(), alone.parameters(), strict=True):
        scale = float(reference.grad.abs().max())
        torch.testing.assert_close(parameter.grad, reference.grad, rtol=0, atol=1e-5 * scale, msg=name)


def test_changing_one_document_leaves_the_others_alone(store: TokenStore, plan: PackPlan) -> None:
    packed = PackedCausalLM(tiny_llama(tied=True)).eval()
    batch = make_batch(store, plan.train, np.array(crowded_packs(plan.train, 1)))
    start, end = batch.borders[1].item(), batch.borders[2].item()
    with torch.no_grad():
        before = packed.logits(batch.input_ids, batch.positions, batch.borders, batch.longest)[0]
        batch.input_ids[0, start:end] = 399 - batch.input_ids[0, start:end]
        after = packed.logits(batch.input_ids, batch.positions, batch.borders, batch.longest)[0]
    changed = (before != after).any(-1)
    assert changed[start:end].all()
    assert not changed[:start].any()
    assert not changed[end:].any()
    assert len(changed) > end, "the test wants a document after the changed one"


def test_a_sliding_window_is_kept(store: TokenStore, plan: PackPlan) -> None:
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=400,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        sliding_window=7,
        attn_implementation="eager",
    )
    alone: LlamaForCausalLM = MistralForCausalLM(config).eval()
    packed = PackedCausalLM(copy.deepcopy(alone)).eval()
    batch = make_batch(store, plan.train, np.array(crowded_packs(plan.train, 1)))
    assert batch.longest > 20
    with torch.no_grad():
        logits = packed.logits(batch.input_ids, batch.positions, batch.borders, batch.longest)[0]
        for start, end in zip(batch.borders[:-1].tolist(), batch.borders[1:].tolist(), strict=True):
            torch.testing.assert_close(logits[start:end], alone(batch.input_ids[:, start:end]).logits[0])


def test_the_head_tells_loss_hit_and_entropy_of_every_label(store: TokenStore, plan: PackPlan) -> None:
    packed = PackedCausalLM(tiny_llama(tied=True)).eval()
    batch = make_batch(store, plan.train, np.array(crowded_packs(plan.train, 1)))
    targets = batch.targets
    with torch.no_grad():
        logits = packed.logits(batch.input_ids, batch.positions, batch.borders, batch.longest)[0, targets.places]
        loss, stats = packed(*batch.model_inputs)
        easy = replace(batch, targets=replace(targets, labels=logits.argmax(-1)))
        _, all_right = packed(*easy.model_inputs)
    losses = torch.nn.functional.cross_entropy(logits, targets.labels, reduction="none")
    torch.testing.assert_close(stats[0], losses)
    torch.testing.assert_close(stats[1], (logits.argmax(-1) == targets.labels).float())
    torch.testing.assert_close(stats[2], torch.distributions.Categorical(logits=logits).entropy())
    torch.testing.assert_close(loss, losses.sum())
    assert all_right[1].sum() == len(targets.labels) > 0


def test_sums_by_source_are_those_of_each_source_alone(store: TokenStore, plan: PackPlan) -> None:
    batch = make_batch(store, plan.train, np.array(crowded_packs(plan.train, 2)))
    count = len(batch.targets.labels)
    sources, weights = torch.arange(count) % 3, torch.rand(count)
    stats = torch.rand(3, count)
    sums = sums_by_source(stats, replace(batch.targets, sources=sources, weights=weights, source_count=4))
    assert sums.shape == (4, 5) and not sums[3].any()
    for source in range(3):
        chosen = sources == source
        assert sums[source, COUNT] == chosen.sum()
        for column, values in ((LOSS, stats[0] * weights), (WEIGHT, weights), (RIGHT, stats[1]), (ENTROPY, stats[2])):
            torch.testing.assert_close(sums[source, column], values[chosen].double().sum())
    unweighted = sums_by_source(stats, replace(batch.targets, sources=sources, weights=None, source_count=3))
    torch.testing.assert_close(unweighted[:, WEIGHT], unweighted[:, COUNT])


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("rows", [1, 16, 17, 100])
def test_the_head_is_cross_entropy_in_any_number_of_chunks(
    rows: int, weighted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(CHUNK_LOGITS, "cpu", 16 * 50)
    torch.manual_seed(rows)
    hidden = torch.randn(rows, 16, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(50, 16, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(0, 50, (rows,))
    counts = torch.rand(rows) if weighted else torch.ones(rows)
    hidden.data[-1] *= 100  # very sure of itself
    loss, _ = TrainedTokensLoss.apply(  # type: ignore[no-untyped-call]
        hidden, weight, labels, counts if weighted else None, True
    )
    got = torch.autograd.grad(loss * 3, (hidden, weight))
    expected_loss = (torch.nn.functional.cross_entropy(hidden @ weight.t(), labels, reduction="none") * counts).sum()
    expected = torch.autograd.grad(expected_loss * 3, (hidden, weight))
    torch.testing.assert_close(loss.double(), expected_loss, rtol=1e-6, atol=0)
    for mine, reference in zip(got, expected, strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-4, atol=1e-5)


def test_a_row_without_labels_has_loss_zero_and_gradient_zero(store: TokenStore, plan: PackPlan) -> None:
    packed = PackedCausalLM(tiny_llama(tied=False))
    batch = make_batch(store, plan.train, np.array([], dtype=np.int64))
    loss, stats = packed(*batch.model_inputs)
    loss.backward()
    assert float(loss.detach()) == 0.0 and stats.shape == (3, 0)
    assert not sums_by_source(stats, batch.targets).any()
    assert all(parameter.grad is None or not parameter.grad.any() for parameter in packed.parameters())
    assert packed.model.get_output_embeddings().weight.grad is not None


CPU = torch.device("cpu")
SMALL = {
    "vocab_size": 400,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}


@pytest.mark.parametrize("architecture", ["llama", "mistral", "qwen3", "smollm3", "olmo2", "phi3"])
def test_plain_attention_models_keep_documents_apart(architecture: str) -> None:
    config = AutoConfig.for_model(architecture, **SMALL, num_key_value_heads=2, pad_token_id=0, eos_token_id=1)
    packed = PackedCausalLM(AutoModelForCausalLM.from_config(config))
    check_documents_are_apart(packed, CPU)
    assert packed.model.config._attn_implementation == PACKED


@pytest.mark.parametrize(
    ("architecture", "keys"),
    [
        ("lfm2", {"layer_types": ["conv", "full_attention"], "num_key_value_heads": 2}),
        ("granite", {"logits_scaling": 8.0}),
        ("cohere", {"logit_scale": 0.0625}),
    ],
)
def test_other_models_are_refused(architecture: str, keys: dict[str, Any]) -> None:
    config = AutoConfig.for_model(architecture, **SMALL, pad_token_id=0, eos_token_id=1, bos_token_id=2, **keys)
    packed = PackedCausalLM(AutoModelForCausalLM.from_config(config))
    with pytest.raises(UserError, match=f"{architecture} (lets documents|computes other logits)"):
        check_documents_are_apart(packed, CPU)
