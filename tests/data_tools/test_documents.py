"""Real data of every format in one store: what each source becomes, and how much of it."""

import json
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from data_tools.config import DataConfig
from data_tools.prepare import prepare
from data_tools.store import TokenStore
from data_tools.tokenizer import load_tokenizer
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
