"""Real data of every format in one store: what each source becomes, and how much of it."""

import json
from datetime import date
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from tokenizers import processors

from data_tools.chat import ChatTemplate
from data_tools.config import DataConfig
from data_tools.errors import UserError
from data_tools.prepare import prepare
from data_tools.store import TokenStore
from data_tools.tokenizer import CHATML, load_tokenizer, template_of, train_tokenizer
from tests.conftest import write_jsonl

ROWS = 24
SOURCES: dict[str, dict[str, Any]] = {
    "gpteacher/codegen-instruct.json": {},
    "gpteacher/toolformer-dedupe-only-dataset.json": {},
    "gsm8k/train.jsonl": {"columns": {"user": "{question}", "assistant": "<think>{question}</think>{answer}"}},
    "multiturn/smile_client_counselor_zh.jsonl": {},
    "sharegpt/dummy_conversation.json": {},
    "toolcall/glaive_toolcall_en_demo.json": {},
    "toolcall/trl_toolcall.jsonl": {},
    "trl_zen/conversational_language_modeling.jsonl": {},
    "trl_zen/conversational_prompt_completion.jsonl": {},
    "trl_zen/standard_language_modeling.jsonl": {},
    "trl_zen/standard_prompt_completion.jsonl": {},
}
FORMATS = ["instruction"] * 2 + ["messages"] + ["sharegpt"] * 3 + ["messages"] * 2 + ["prompt_completion", "text"]


def first_rows(file: Path) -> list[Any]:
    if file.suffix == ".json":
        return list(json.loads(file.read_text(encoding="utf-8")))[:ROWS]
    with open(file, encoding="utf-8") as lines:
        return [json.loads(line) for line in islice(lines, ROWS)]


@pytest.fixture(scope="module")
def mixed(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    """The first rows of all of them, with a tokenizer and a template that know tools."""
    folder = tmp_path_factory.mktemp("mixed")
    sources = []
    for number, (file, settings) in enumerate(SOURCES.items()):
        path = write_jsonl(folder / f"{number:02d}.jsonl", first_rows(real_data / "datasets" / file))
        sources.append({"path": str(path), **settings})
    config = {
        "sources": sources,
        "tokenizer": str(real_data / "tokenizers" / "minimind"),
        "chat_template": str(real_data / "chat_templates" / "Qwen-Qwen2.5-7B-Instruct.jinja"),
        "max_reject_fraction": 0.01,
        "actors": 0,
    }
    return prepare(DataConfig.model_validate(config), folder / "tokens")


def test_every_format_is_told_and_every_row_becomes_a_document(mixed: TokenStore) -> None:
    sources = mixed.manifest["sources"]
    assert [source["format"] for source in sources] == [*FORMATS, "prompt_completion"]
    for source, file in zip(sources, SOURCES, strict=True):
        assert source["rows_in"] == source["rows_out"] > 0, file
        assert 0 < source["trained_tokens"] < source["tokens"], file
    for name in ("rows_in", "rows_out", "tokens", "trained_tokens"):
        assert mixed.manifest["totals"][name] == sum(source[name] for source in sources)
    assert mixed.manifest["totals"]["rejected"] == mixed.manifest["totals"]["dropped"] == 0


def test_answers_and_nothing_else_are_learnt(mixed: TokenStore) -> None:
    """Decoded again: each learnt stretch of a chat ends with the end of a turn, and none holds a header."""
    tokenizer = load_tokenizer(str(mixed.folder / "tokenizer"))
    for number in range(len(mixed)):
        document = mixed.document(number)
        borders = document.mask_runs.cumsum().tolist()
        learnt = [document.input_ids[a:b] for a, b in zip(borders[::2], borders[1::2], strict=False)]
        for text in map(tokenizer.decode, learnt):
            assert text.endswith("<|im_end|>")
            assert "<|im_start|>" not in text


def test_text_and_tokens_need_no_template(tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "ids.jsonl", [{"input_ids": [1, 2, 3], "labels": [-100, 2, 3]}] * 3)
    text = write_jsonl(tmp_path / "text.jsonl", [{"text": "Beautiful is better."}] * 3)
    config = {"sources": [{"path": str(file)}, {"path": str(text)}], "tokenizer": {"vocab_size": 300}}
    store = prepare(DataConfig.model_validate(config), tmp_path / "tokens")
    assert [source["format"] for source in store.manifest["sources"]] == ["tokens", "text"]
    assert store.document(0).input_ids.tolist() == [1, 2, 3]
    assert store.document(0).mask_runs.tolist() == [1, 2]


@pytest.fixture
def untemplated(tmp_path: Path) -> Path:
    """A tokenizer of a base model, which has no chat template and begins texts with a token."""
    tokenizer = train_tokenizer(iter(["Beautiful is better."] * 20), 300)
    tokenizer.chat_template = None
    tokenizer.bos_token = "<|im_start|>"
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|im_start|> $A", pair="<|im_start|> $A $B", special_tokens=[("<|im_start|>", 1)]
    )
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


def prepared(tokenizer: Path, rows: dict[str, list[Any]], store: str = "tokens", **settings: Any) -> TokenStore:
    folder = tokenizer.parent
    sources = [{"path": str(write_jsonl(folder / f"{name}.jsonl", each))} for name, each in rows.items()]
    values = {"sources": sources, "tokenizer": str(tokenizer), "actors": 0, **settings}
    return prepare(DataConfig.model_validate(values), folder / store)


PLAIN: dict[str, list[Any]] = {
    "text": [{"text": "Beautiful is better."}] * 3,
    "ids": [{"input_ids": [1, 200, 201]}] * 3,
    "pairs": [{"prompt": "Beautiful", "completion": " is better."}] * 3,
}


def test_texts_and_tokens_ask_for_no_template_of_the_tokenizer(untemplated: Path) -> None:
    store = prepared(untemplated, PLAIN)
    assert [source["rows_out"] for source in store.manifest["sources"]] == [3, 3, 3]
    saved = load_tokenizer(str(store.folder / "tokenizer"))
    assert saved.chat_template is None
    assert saved.decode(store.document(0).input_ids) == "<|im_start|>Beautiful is better.<|im_end|>"
    template = ChatTemplate(template_of(saved), saved.special_tokens_map, date(2025, 1, 1))
    assert template.prompt([{"role": "user", "content": "Beautiful"}]) == "<|im_start|>Beautiful"


CHAT = {"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "Yes"}]}


def test_conversations_need_a_template_and_the_error_names_their_source(untemplated: Path) -> None:
    with pytest.raises(
        UserError,
        match=r"^the source talks has conversations, and .*/tokenizer has no chat template; "
        r"set data\.chat_template to a Jinja file, or to chatml$",
    ):
        prepared(untemplated, {**PLAIN, "talks": [CHAT]})
    odd = {"pairs": [*PLAIN["pairs"] * 30, {"prompt": CHAT["messages"][:1], "completion": CHAT["messages"][1:]}]}
    store = prepared(untemplated, odd)  # one of many rows, beyond those that are looked at first
    (reject,) = (json.loads(line) for line in store.file("rejects.jsonl").read_text().splitlines())
    refused = "the chat template refuses the conversation: there is none; set data.chat_template to a Jinja file, or to"
    assert (reject["row"], reject["reason"]) == (90, f"{refused} chatml")
    chat = prepared(untemplated, {"talks": [CHAT]}, chat_template="chatml", store="other")
    assert chat.manifest["totals"]["rows_out"] == 1


def test_named_templates_of_which_none_is_the_default_are_listed(untemplated: Path) -> None:
    (untemplated / "additional_chat_templates").mkdir()
    for name in ("rag", "tool_use"):
        (untemplated / "additional_chat_templates" / f"{name}.jinja").write_text(CHATML)
    with pytest.raises(
        UserError, match=r"has no default chat template; set data\.chat_template to one of rag, tool_use"
    ):
        prepared(untemplated, {"talks": [CHAT]})
    assert prepared(untemplated, {"text": PLAIN["text"]}).manifest["totals"]["rows_out"] == 3
