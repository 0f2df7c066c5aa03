"""The trial at the start: models that are right in packs pass it, others are refused for the right reason."""

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from data_tools.errors import UserError
from sft.attention import PACKED
from sft.loss import LogitForm
from sft.model import PackedCausalLM
from sft.self_test import check_documents_are_apart

CPU = torch.device("cpu")
SMALL = {
    "vocab_size": 400,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": 2,
}
GEMMA = {"head_dim": 8, "sliding_window": 4}


def packed_model(architecture: str, keys: dict[str, Any], attention: str = PACKED) -> PackedCausalLM:
    torch.manual_seed(0)
    config = AutoConfig.for_model(architecture, **{**SMALL, "initializer_range": 0.2, **keys})
    return PackedCausalLM(AutoModelForCausalLM.from_config(config), attention)


@pytest.mark.parametrize(
    ("architecture", "keys"),
    [
        ("llama", {}),
        ("mistral", {"sliding_window": 5}),
        ("qwen3", {}),
        ("smollm3", {}),
        ("olmo2", {}),
        ("phi3", {}),
        ("mixtral", {"num_local_experts": 2}),
        # More experts than tokens choose: how many rows an expert has depends on the other documents, and its rounding.
        ("mixtral", {"num_local_experts": 8}),
        ("qwen3_moe", {"num_experts": 8, "num_experts_per_tok": 4, "moe_intermediate_size": 64}),
        # Their logits are scaled, capped, or made with a bias.
        ("granite", {"logits_scaling": 8.0, "attention_multiplier": 0.1, "embedding_multiplier": 3.0}),
        ("cohere", {"logit_scale": 0.0625}),
        ("gemma2", {**GEMMA, "final_logit_softcapping": 2.0, "attn_logit_softcapping": 1.0}),
        ("gemma3_text", {**GEMMA, "final_logit_softcapping": 2.0}),
        ("phi", {}),
    ],
)
def test_attention_models_keep_documents_apart(architecture: str, keys: dict[str, Any]) -> None:
    packed = packed_model(architecture, keys)
    bias = getattr(packed.model.get_output_embeddings(), "bias", None)
    if bias is not None:
        torch.nn.init.normal_(bias)
    check_documents_are_apart(packed, CPU)
    assert packed.model.config._attn_implementation == PACKED


@pytest.mark.parametrize(("architecture", "attention"), [("stablelm", "sdpa"), ("llama", "sdpa")])
def test_attention_of_transformers_is_tried_too(architecture: str, attention: str) -> None:
    packed = packed_model(architecture, {}, attention)
    check_documents_are_apart(packed, CPU)
    assert packed.model.config._attn_implementation == attention


LFM2 = {"layer_types": ["conv", "full_attention"]}


@pytest.mark.parametrize(
    ("architecture", "keys", "attention", "reason"),
    [
        ("lfm2", LFM2, PACKED, "carry a state .* set data.packing=none and train.packs_per_micro_batch=1"),
        (
            "bloom",
            {"n_head": 4, "n_layer": 2},
            PACKED,
            "carry a state .* or do not hear of documents; set data.packing",
        ),
        ("stablelm", {}, PACKED, "where documents end; set model.attention=sdpa"),
        ("gpt_oss", {"num_local_experts": 2, "head_dim": 8}, PACKED, "attention sinks; set model.attention=flex"),
        ("gemma2", {**GEMMA, "attn_logit_softcapping": 1.0}, "sdpa", "softcap"),
    ],
)
def test_others_are_refused_with_reason_and_way_out(
    architecture: str, keys: dict[str, Any], attention: str, reason: str
) -> None:
    packed = packed_model(architecture, keys, PACKED)
    packed.attention = attention
    packed.model.config._attn_implementation_internal = attention
    with pytest.raises(UserError, match=reason):
        check_documents_are_apart(packed, CPU)


def test_deep_models_in_bfloat16_are_taken_for_what_they_are() -> None:
    """Rounding adds up over layers; it is no other function."""
    packed = packed_model("olmo2", {"num_hidden_layers": 32})
    check_documents_are_apart(PackedCausalLM(packed.model.bfloat16(), PACKED), CPU)


def test_what_a_kernel_refuses_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any, **others: Any) -> None:
        raise RuntimeError("head_size should be a multiple of 8\nException raised from mha_varlen_fwd")

    monkeypatch.setattr("sft.attention._document", refuse)
    with pytest.raises(UserError, match=r"llama cannot be trained so: head_size should be a multiple of 8$"):
        check_documents_are_apart(packed_model("llama", {}), CPU)


def test_a_model_with_state_is_right_one_document_at_a_time() -> None:
    check_documents_are_apart(packed_model("lfm2", LFM2), CPU, alone=True)


def test_an_output_layer_that_does_something_else_is_told_from_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sft.loss.logit_form", lambda _: LogitForm())
    with pytest.raises(UserError, match=r"granite makes its logits in a way that the loss does not follow"):
        check_documents_are_apart(packed_model("granite", {"logits_scaling": 8.0}), CPU)
    monkeypatch.setattr("sft.attention._window_mask", lambda length, *_: torch.ones(length, length).tril().bool())
    with pytest.raises(UserError, match=r"mistral computes something else with model\.attention=packed"):
        check_documents_are_apart(packed_model("mistral", {"sliding_window": 3}), CPU)
