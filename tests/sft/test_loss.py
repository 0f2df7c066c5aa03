"""The loss head: cross-entropy on trained positions, whatever a model does to its logits, with what is told of them."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import Cohere2Config, Gemma2Config, GraniteConfig, LlamaConfig, PretrainedConfig

from data_tools.plan import PackPlan
from data_tools.store import TokenStore
from sft.batches import make_batch
from sft.loss import (
    CHUNK_LOGITS,
    COUNT,
    ENTROPY,
    LOSS,
    RIGHT,
    WEIGHT,
    LogitForm,
    TrainedTokensLoss,
    logit_form,
    sums_by_source,
)
from sft.model import PackedCausalLM
from tests.sft.models import crowded_packs, tiny_llama


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


def test_a_row_without_labels_has_loss_zero_and_gradient_zero(store: TokenStore, plan: PackPlan) -> None:
    packed = PackedCausalLM(tiny_llama(tied=False))
    batch = make_batch(store, plan.train, np.array([], dtype=np.int64))
    loss, stats = packed(*batch.model_inputs)
    loss.backward()
    assert float(loss.detach()) == 0.0 and stats.shape == (3, 0)
    assert not sums_by_source(stats, batch.targets).any()
    assert all(parameter.grad is None or not parameter.grad.any() for parameter in packed.parameters())
    assert packed.model.get_output_embeddings().weight.grad is not None


@settings(deadline=None, max_examples=60)
@given(
    rows=st.sampled_from([0, 1, 16, 17, 100]),
    weighted=st.booleans(),
    biased=st.booleans(),
    scale=st.sampled_from([1.0, 0.125]),
    cap=st.sampled_from([None, 5.0]),
)
def test_the_head_is_cross_entropy_in_any_number_of_chunks(
    rows: int, weighted: bool, biased: bool, scale: float, cap: float | None
) -> None:
    torch.manual_seed(rows)
    hidden = torch.randn(rows, 16, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(50, 16, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(50, dtype=torch.float64, requires_grad=True) if biased else None
    labels = torch.randint(0, 50, (rows,))
    counts = torch.rand(rows) if weighted else None
    hidden.data[-1:] *= 100 if cap is None else 3  # very sure of itself; float32 tells no more at a cap
    inputs = [tensor for tensor in (hidden, weight, bias) if tensor is not None]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(CHUNK_LOGITS, "cpu", 16 * 50)
        loss, stats = TrainedTokensLoss.apply(  # type: ignore[no-untyped-call]
            hidden, weight, bias, labels, counts, LogitForm(scale, cap), True
        )
    got = torch.autograd.grad(loss * 3, inputs)
    logits = torch.nn.functional.linear(hidden, weight, bias) * scale
    if cap is not None:
        logits = cap * torch.tanh(logits / cap)
    losses = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    true_loss = (losses if counts is None else losses * counts).sum()
    true = torch.autograd.grad(true_loss * 3, inputs)
    torch.testing.assert_close(loss.double(), true_loss, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(stats[0].double(), losses.detach(), rtol=1e-5, atol=1e-5)
    for mine, reference in zip(got, true, strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("frozen", ["hidden", "weight"])
def test_what_is_not_trained_gets_no_gradient(frozen: str) -> None:
    torch.manual_seed(0)
    hidden, weight = torch.randn(20, 16), torch.randn(50, 16)
    trained = weight if frozen == "hidden" else hidden
    trained.requires_grad_()
    labels = torch.randint(0, 50, (20,))
    loss, _ = TrainedTokensLoss.apply(  # type: ignore[no-untyped-call]
        hidden, weight, None, labels, None, LogitForm(), True
    )
    true = torch.nn.functional.cross_entropy(hidden @ weight.t(), labels, reduction="sum")
    torch.testing.assert_close(torch.autograd.grad(loss, trained), torch.autograd.grad(true, trained))
    assert (weight if frozen == "weight" else hidden).grad is None


@pytest.mark.parametrize(
    ("config", "form"),
    [
        (LlamaConfig(), LogitForm()),
        (GraniteConfig(logits_scaling=8.0), LogitForm(scale=0.125)),
        (Cohere2Config(logit_scale=0.0625), LogitForm(scale=0.0625)),
        (Gemma2Config(final_logit_softcapping=30.0), LogitForm(cap=30.0)),
    ],
)
def test_the_form_of_logits_is_read_from_the_configuration(config: PretrainedConfig, form: LogitForm) -> None:
    assert logit_form(config) == form
