"""Ids are the tokenizer's own for the whole text; masks are what transformers' own mask is."""

from datetime import date
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_tools.chat import ChatTemplate, RenderedChat
from data_tools.encode import Document, Encoder
from data_tools.formats import Conversation, to_conversation
from data_tools.tokenizer import load_tokenizer, train_tokenizer

TOKENIZER = train_tokenizer(iter(["Hello there, how are you?", "I am fine, thank you."] * 50), 320)
ENCODER = Encoder(TOKENIZER)


def mask(document: Document) -> list[bool]:
    return np.repeat(np.arange(len(document.mask_runs)) % 2 == 1, document.mask_runs).tolist()


@given(st.lists(st.tuples(st.text(max_size=8), st.text(min_size=1, max_size=8)), min_size=1, max_size=4))
def test_any_text_keeps_its_ids_and_its_mask(parts: list[tuple[str, str]]) -> None:
    """Turns begin and end at control tokens, so no token lies across a border and the mask decodes to the spans."""
    text, spans = "", []
    for untrained, trained in parts:
        text += untrained + "<|im_start|>"
        spans.append((len(text), len(text) + len(trained) + len("<|im_end|>")))
        text += trained + "<|im_end|>"
    (document,) = ENCODER.encode([RenderedChat(text, spans)])
    ids = document.input_ids.tolist()
    assert ids == TOKENIZER.encode(text, add_special_tokens=False)
    assert sum(document.mask_runs) == len(ids)
    learnt = [token for token, is_trained in zip(ids, mask(document), strict=True) if is_trained]
    assert TOKENIZER.decode(learnt) == "".join(text[start:end] for start, end in spans)


@pytest.mark.parametrize(("runs", "trained"), [([3, 2], 2), ([0, 3], 2), ([4], 0), ([0, 1], 0), ([1, 2, 3, 4, 1], 6)])
def test_trained_counts_labels(runs: list[int], trained: int) -> None:
    assert Document(np.zeros(sum(runs), np.int32), np.array(runs, np.int32)).trained == trained


def test_a_limit_saved_in_the_tokenizer_cuts_nothing(real_data: Path) -> None:
    tokenizer = load_tokenizer(str(real_data / "tokenizers" / "smollm2"), _chatml(real_data))
    assert tokenizer.backend_tokenizer.truncation["max_length"] == 1024
    text = "word " * 5_000
    (document,) = Encoder(tokenizer).encode([RenderedChat(text, [(0, len(text))])])
    assert len(document.input_ids) > 4_000
    assert document.mask_runs.tolist() == [0, len(document.input_ids)]


def _chatml(real_data: Path) -> str:
    return str(real_data / "chat_templates" / "trl-qwen2_5_training.jinja")


def test_a_word_that_begins_before_its_span_is_learnt_as_transformers_does() -> None:
    """Vicuna's kind of template: the space before the answer belongs to the answer's first token."""
    source = (
        "{% for m in messages %}{% if m.role == 'assistant' %}ASSISTANT: {% generation %}{{ m.content }}<|im_end|>"
        "{% endgeneration %}{% else %}USER: {{ m.content }} {% endif %}{% endfor %}"
    )
    tokenizer = train_tokenizer(iter(["ASSISTANT: Yes USER: Well, you are fine. Yes"] * 50), 400)
    tokenizer.chat_template = source
    messages = [
        {"role": "user", "content": "Well?"},
        {"role": "assistant", "content": "Yes"},
        {"role": "user", "content": "Are you?"},
        {"role": "assistant", "content": "Yes fine."},
    ]
    chat = ChatTemplate(source, tokenizer.special_tokens_map, date(2025, 1, 1)).render(Conversation(messages))
    (document,) = Encoder(tokenizer).encode([chat])
    expected = tokenizer.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
    assert document.input_ids.tolist() == expected["input_ids"]
    assert mask(document) == [bool(value) for value in expected["assistant_masks"]]
    learnt = [token for token, is_learnt in zip(document.input_ids, mask(document), strict=True) if is_learnt]
    assert tokenizer.decode(learnt) == " Yes<|im_end|> Yes fine.<|im_end|>"


def test_masks_of_smollm3_are_those_of_transformers(real_data: Path) -> None:
    """The real template with its generation tags, on rows with thinking, tools, instructions and other scripts."""
    today = date.today()  # transformers cannot freeze the date
    tokenizer = load_tokenizer(str(real_data / "tokenizers" / "smollm3"))
    template = ChatTemplate(str(tokenizer.chat_template), tokenizer.special_tokens_map, today)
    rows = [
        row
        for file in sorted((real_data / "smoltalk2_mini" / "SFT").glob("*.parquet"))
        for row in pq.read_table(file).slice(0, 4).to_pylist()
    ]
    assert len(rows) == 100
    conversations = [to_conversation(row) for row in rows]
    documents = Encoder(tokenizer).encode([template.render(conversation) for conversation in conversations])
    for conversation, document in zip(conversations, documents, strict=True):
        expected = tokenizer.apply_chat_template(
            conversation.messages,
            return_dict=True,
            return_assistant_tokens_mask=True,
            **conversation.template_arguments,
        )
        assert document.input_ids.tolist() == expected["input_ids"]
        assert mask(document) == [bool(value) for value in expected["assistant_masks"]]
