"""Ids are the tokenizer's own for the whole text; masks are what transformers' own mask is."""

import unicodedata
from copy import deepcopy
from datetime import date
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import normalizers

from data_tools.chat import ChatTemplate, Learning
from data_tools.chat_text import RenderedChat
from data_tools.config import SourceConfig
from data_tools.encode import Documents, Encoder
from data_tools.formats import Conversation, RowReader
from data_tools.masks import Masks, label_counts
from data_tools.tokenizer import load_tokenizer, train_tokenizer

TOKENIZER = train_tokenizer(iter(["Hello there, how are you?", "I am fine, thank you."] * 50), 320)
ENCODERS = [Encoder(TOKENIZER, "tokenizers"), Encoder(TOKENIZER, "gigatoken")]


def ids_of(documents: Documents, number: int = 0) -> list[int]:
    ids: list[int] = documents.ids[documents.offsets[number] : documents.offsets[number + 1]].tolist()
    return ids


@given(st.lists(st.tuples(st.text(max_size=8), st.text(min_size=1, max_size=8)), min_size=1, max_size=4))
def test_any_text_keeps_its_ids_and_its_mask(parts: list[tuple[str, str]]) -> None:
    """Turns begin and end at control tokens, so no token lies across a border and the mask decodes to the spans."""
    text, spans = "", []
    for untrained, trained in parts:
        text += untrained + "<|im_start|>"
        spans.append((len(text), len(text) + len(trained) + len("<|im_end|>")))
        text += trained + "<|im_end|>"
    byte_spans = [(len(text[:start].encode()), len(text[:end].encode())) for start, end in spans]
    for encoder in ENCODERS:
        documents = encoder.encode([RenderedChat(text.encode(), byte_spans)])
        ids = ids_of(documents)
        assert ids == TOKENIZER.encode(text, add_special_tokens=False)
        assert len(documents.mask(0)) == len(ids)
        learnt = [token for token, is_trained in zip(ids, documents.mask(0), strict=True) if is_trained]
        assert TOKENIZER.decode(learnt) == "".join(text[start:end] for start, end in spans)


COMPOSING = deepcopy(TOKENIZER)
COMPOSING.backend_tokenizer.normalizer = normalizers.NFC()
COMPOSING_ENCODERS = [Encoder(COMPOSING, "tokenizers"), Encoder(COMPOSING, "gigatoken")]
WORDS = st.text(st.sampled_from("a 한é▁."), max_size=6)


@given(st.lists(st.tuples(WORDS, WORDS, st.sampled_from(["NFC", "NFD"])), min_size=1, max_size=6))
def test_a_text_that_the_tokenizer_composes_leaves_its_neighbours_alone(rows: list[tuple[str, str, str]]) -> None:
    """Decomposed text has more bytes than its tokens; the masks of all others in the batch stay what they are alone."""
    chats = []
    for asked, said, form in rows:
        prompt, answer = (unicodedata.normalize(form, text).encode() for text in (f"{asked}<|im_start|>", said * 20))  # type: ignore[arg-type]
        chats.append(RenderedChat(prompt + answer + b"<|im_end|>", [(len(prompt), len(prompt) + len(answer) + 10)]))
    for encoder in COMPOSING_ENCODERS:
        together = encoder.encode(chats)
        for number, chat in enumerate(chats):
            ids, mask = encoder.encode_alone(chat)
            assert ids_of(together, number) == ids.tolist()
            assert together.mask(number).tolist() == mask.tolist()


@pytest.mark.parametrize(("runs", "trained"), [([3, 2], 2), ([0, 3], 2), ([4], 0), ([0, 1], 0), ([1, 2, 3, 4, 1], 6)])
def test_trained_counts_labels(runs: list[int], trained: int) -> None:
    masks = Masks(np.array(runs, np.int32), np.array([0, len(runs)]))
    labels, weights = label_counts(masks)
    assert (labels.tolist(), weights.tolist()) == ([trained], [trained])
    _, halves = label_counts(masks, np.full(len(runs), 0.5, np.float32))
    assert halves.tolist() == [trained / 2]


def test_a_limit_saved_in_the_tokenizer_cuts_nothing(real_data: Path) -> None:
    tokenizer = load_tokenizer(str(real_data / "tokenizers" / "smollm2"), _chatml(real_data))
    assert tokenizer.backend_tokenizer.truncation["max_length"] == 1024
    text = "word " * 5_000
    documents = Encoder(tokenizer).encode([RenderedChat(text.encode(), [(0, len(text))])])
    assert len(documents.ids) > 4_000
    assert documents.masks.runs.tolist() == [0, len(documents.ids)]


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
    chats = ChatTemplate(source, tokenizer.special_tokens_map, date(2025, 1, 1)).render(Conversation(messages))
    documents = Encoder(tokenizer).encode(chats)
    expected = tokenizer.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
    assert ids_of(documents) == expected["input_ids"]
    assert documents.mask(0).tolist() == [bool(value) for value in expected["assistant_masks"]]
    learnt = [token for token, is_learnt in zip(ids_of(documents), documents.mask(0), strict=True) if is_learnt]
    assert tokenizer.decode(learnt) == " Yes<|im_end|> Yes fine.<|im_end|>"


@pytest.mark.parametrize("engine", ["tokenizers", "gigatoken"])
def test_masks_of_smollm3_are_those_of_transformers(engine: str, real_data: Path) -> None:
    """The real template with its generation tags, on rows with thinking, tools, instructions and other scripts."""
    today = date.today()  # transformers cannot freeze the date
    tokenizer = load_tokenizer(str(real_data / "tokenizers" / "smollm3"))
    learning = Learning(train_headers=True)  # the tags of this template enclose them
    template = ChatTemplate(str(tokenizer.chat_template), tokenizer.special_tokens_map, today, learning)
    rows = [
        row
        for file in sorted((real_data / "smoltalk2_mini" / "SFT").glob("*.parquet"))
        for row in pq.read_table(file).slice(0, 4).to_pylist()
    ]
    assert len(rows) == 100
    reader = RowReader(SourceConfig(path="rows", format="messages"))
    conversations = [reader.read(row) for row in rows]
    chats = [template.render(each)[0] for each in conversations if isinstance(each, Conversation)]
    documents = Encoder(tokenizer, engine).encode(chats)
    for number, conversation in enumerate(conversations):
        assert isinstance(conversation, Conversation)
        expected = tokenizer.apply_chat_template(
            conversation.messages,
            return_dict=True,
            return_assistant_tokens_mask=True,
            **conversation.template_arguments,
        )
        assert ids_of(documents, number) == expected["input_ids"]
        assert documents.mask(number).tolist() == [bool(value) for value in expected["assistant_masks"]]
