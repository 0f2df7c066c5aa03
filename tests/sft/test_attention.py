"""A packed row computes what its documents compute alone: losses, gradients, windows, caps, and none sees another."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from data_tools.errors import UserError
from data_tools.plan import PackPlan
from data_tools.store import TokenStore
from sft.attention import PACKED, check_heads, choose_attention, even_heads, packed_attention
from sft.batches import make_batch
from sft.model import PackedCausalLM
from tests.sft.models import crowded_packs, documents_of, loss_alone, tiny_llama

CPU, GPU = torch.device("cpu"), torch.device("cuda")


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


@settings(deadline=None, max_examples=40)
@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=5),
    heads=st.sampled_from([(4, 4), (4, 2), (6, 1)]),
    window=st.sampled_from([None, 1, 4, 100]),
    softcap=st.sampled_from([None, 2.0]),
    scale=st.sampled_from([None, 0.3]),
)
def test_attention_is_that_of_one_masked_row(
    lengths: list[int], heads: tuple[int, int], window: int | None, softcap: float | None, scale: float | None
) -> None:
    torch.manual_seed(sum(lengths))
    tokens = sum(lengths)
    query = torch.randn(1, heads[0], tokens, 8, dtype=torch.float64)
    key, value = (torch.randn(1, heads[1], tokens, 8, dtype=torch.float64) for _ in range(2))
    borders = torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32)
    got, _ = packed_attention(
        torch.nn.Identity(), query, key, value, None, scale, 0.0, window, softcap, None, borders, max(lengths)
    )
    document = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    distance = torch.arange(tokens)[:, None] - torch.arange(tokens)[None]
    seen = (document[:, None] == document[None]) & (distance >= 0) & (distance < (window or tokens))
    key, value = (tensor.repeat_interleave(heads[0] // heads[1], 1) for tensor in (key, value))
    scores = query @ key.transpose(2, 3) * (8**-0.5 if scale is None else scale)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    expected = torch.softmax(scores.masked_fill(~seen, -torch.inf), -1) @ value
    torch.testing.assert_close(got, expected.transpose(1, 2), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("width", "of_value"), [(24, 16), (20, 20), (16, 16), (10, 8)])
def test_heads_that_are_made_even_attend_as_they_were(width: int, of_value: int) -> None:
    """What the kernel for GPUs is given where it would not take a model's heads (latent attention, Phi)."""
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, 2, 9, size) for size in (width, width, of_value))
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
    even = even_heads(query, key, value)
    assert {tensor.shape[-1] for tensor in even} == {width + -width % 8}
    q, k, v = even
    found = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=width**-0.5)
    torch.testing.assert_close(found[..., :of_value], expected)
    assert not found[..., of_value:].any()


def test_sdpa_of_transformers_keeps_documents_apart_by_positions(store: TokenStore, plan: PackPlan) -> None:
    batch = make_batch(store, plan.train, np.array(crowded_packs(plan.train, 1)))
    losses = []
    for attention in (PACKED, "sdpa"):
        loss, _ = PackedCausalLM(tiny_llama(tied=True), attention)(*batch.model_inputs)
        losses.append(loss.detach())
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("choice", "cap", "device", "chosen"),
    [
        ("auto", None, CPU, PACKED),
        ("auto", None, GPU, PACKED),
        ("auto", 50.0, CPU, PACKED),
        ("auto", 50.0, GPU, "flex_attention"),
        ("packed", 50.0, GPU, PACKED),
        ("sdpa", None, CPU, "sdpa"),
        ("flex_attention", None, GPU, "flex_attention"),
    ],
)
def test_the_choice_of_attention(choice: str, cap: float | None, device: torch.device, chosen: str) -> None:
    config = LlamaConfig(attn_logit_softcapping=cap)
    assert choose_attention(choice, config, device) == chosen


@pytest.mark.parametrize("choice", ["flex_attention", "flash_attention_2"])
def test_attention_for_gpus_is_refused_elsewhere(choice: str) -> None:
    with pytest.raises(UserError, match=f"model.attention={choice} trains on GPUs only"):
        choose_attention(choice, LlamaConfig(), CPU)


@pytest.mark.parametrize(
    ("others", "way_out"),
    [
        ({}, "model.attention=sdpa"),
        ({"cu_seq_lens_q": torch.tensor([0, 3]), "max_length_q": 3, "s_aux": torch.zeros(1)}, "flex_attention"),
    ],
)
def test_what_is_not_here_is_refused_with_the_way_out(others: dict[str, Any], way_out: str) -> None:
    rows = torch.zeros(1, 1, 3, 8)
    with pytest.raises(UserError, match=way_out):
        packed_attention(torch.nn.Identity(), rows, rows, rows, None, **others)


@pytest.mark.parametrize(("attention", "size", "problem"), [("sdpa", 2, "not sdpa"), (PACKED, 3, "the 32 attention")])
def test_attention_that_cannot_be_shared_is_refused(attention: str, size: int, problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        check_heads(LlamaConfig(), attention, size)
