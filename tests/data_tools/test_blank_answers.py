"""An answer of nothing would teach a model to end at once: the row is rejected, whatever its format."""

import json
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_tools.chat import ChatTemplate, Learning
from data_tools.columns import compose_columns
from data_tools.config import DataConfig
from data_tools.errors import RowError
from data_tools.formats import Conversation
from data_tools.messages import plain_parts
from data_tools.prepare import prepare
from data_tools.store import TokenStore
from data_tools.tokenizer import CHATML
from tests.conftest import write_jsonl
from tests.data_tools.test_turns import ASKED, ASKED_AGAIN, answer

BLANK = ["", " ", "\n\t", "\u3000"]


def chat(said: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": said}]}


def prepared(file: Path, store: Path, **source: Any) -> TokenStore:
    config = {
        "sources": [{"path": str(file), **source}],
        "tokenizer": {"vocab_size": 300},
        "max_reject_fraction": 0.9,
        "actors": 0,
    }
    return prepare(DataConfig.model_validate(config), store)


def rejects(store: TokenStore) -> list[tuple[int, str, str]]:
    lines = (store.folder / "rejects.jsonl").read_text(encoding="utf-8").splitlines()
    found = [json.loads(line) for line in lines]
    return sorted((reject["row"], reject["kind"], reject["reason"]) for reject in found)


@pytest.mark.parametrize(
    ("row", "answers"),
    [
        (chat("Hello"), chat),
        ({"instruction": "Hi", "output": "Hello"}, lambda said: {"instruction": "Hi", "output": said}),
        ({"prompt": "Hi", "completion": "Hello"}, lambda said: {"prompt": "Hi", "completion": said}),
        (
            {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]},
            lambda said: {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": said}]},
        ),
    ],
    ids=["messages", "instruction", "prompt_completion", "sharegpt"],
)
def test_a_blank_answer_is_rejected_in_every_format(row: dict[str, Any], answers: Any, tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "rows.jsonl", [row, *map(answers, BLANK), row])
    store = prepared(file, tmp_path / "tokens")
    assert len(store) == 2
    assert [(number, kind) for number, kind, _ in rejects(store)] == [(n, "rejected") for n in range(1, 5)]
    assert all("the answer is empty" in reason for _, _, reason in rejects(store))


def test_columns_and_rows_agree_on_blank_answers(tmp_path: Path) -> None:
    rows = [chat("Hello"), *map(chat, BLANK), chat("Hello")]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    by_columns = prepared(tmp_path / "rows.parquet", tmp_path / "columns")
    by_rows = prepared(write_jsonl(tmp_path / "rows.jsonl", rows), tmp_path / "rows")
    assert (
        rejects(by_columns)
        == rejects(by_rows)
        == [(n, "rejected", "the answer is empty (message 1)") for n in range(1, 5)]
    )


def test_an_empty_cell_is_no_answer(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text("question,reply\nHi,Hello\nHi,\n,\nHi,Hello\n", encoding="utf-8")
    store = prepared(file, tmp_path / "tokens", columns={"user": "{question}", "assistant": "{reply}"})
    assert [(number, reason) for number, _, reason in rejects(store)] == [
        (number, "the answer is empty (message 1)") for number in (1, 2)
    ]


def test_text_around_empty_columns_is_no_text() -> None:
    for columns in ({"text": "Q: {q}\nA: {a}"}, {"user": "q", "assistant": "So: {a}{q}"}):
        assert compose_columns({"q": "", "a": "So."}, columns)
        with pytest.raises(RowError, match="there is nothing in the columns of '"):
            compose_columns({"q": " ", "a": ""}, columns)


def test_an_empty_system_column_is_no_message() -> None:
    row = {"s": "", "q": "Hi", "a": "Hello"}
    made = compose_columns(row, {"system": "s", "user": "q", "assistant": "a"})
    assert made["messages"] == chat("Hello")["messages"]


@pytest.mark.parametrize("text", BLANK)
def test_blank_text_has_nothing_to_learn(text: str, tmp_path: Path) -> None:
    store = prepared(write_jsonl(tmp_path / "rows.jsonl", [{"text": "Hi"}, {"text": text}]), tmp_path / "tokens")
    assert rejects(store) == [(1, "dropped", "nothing to train on")]


def test_answers_that_are_not_learnt_may_be_empty() -> None:
    def render(messages: list[Any], train_on: str = "assistant", **facts: Any) -> list[str]:
        template = ChatTemplate(CHATML, {}, date(2025, 1, 1), Learning(train_on=train_on), ["<|im_end|>"])
        row = Conversation(messages, parts=plain_parts(messages), **facts)
        return [learnt for each in template.render(row) for learnt in each.learnt()]

    turns = [ASKED, answer(" "), ASKED_AGAIN, answer("Second.")]
    assert render(turns, "last_assistant") == ["Second.<|im_end|>"]
    assert render(turns, weights=[1, 0, 1, 1]) == ["Second.<|im_end|>"]
    assert render(turns, completion_from=3) == ["Second.<|im_end|>"]
    for learns_it in ("assistant", "all"):
        with pytest.raises(RowError, match=r"the answer is empty \(message 1\)"):
            render(turns, learns_it)
