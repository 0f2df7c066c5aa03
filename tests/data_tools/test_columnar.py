"""Chats in columns become the very documents and rejects that they become row by row."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_tools.columnar import plain_chats
from data_tools.config import DataConfig
from data_tools.prepare import prepare
from data_tools.store import TokenStore
from tests.conftest import write_jsonl

MESSAGE = pa.struct({"role": pa.string(), "content": pa.string(), "name": pa.string()})
SCHEMA = pa.schema(
    {
        "messages": pa.list_(MESSAGE),
        "tools": pa.list_(pa.string()),
        "chat_template_kwargs": pa.struct({"enable_thinking": pa.bool_(), "custom_instructions": pa.string()}),
        "system": pa.string(),
        "source": pa.string(),
    }
)
STRIPS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WITH_ARGUMENTS = "{% if enable_thinking %}/think {{ custom_instructions }}%s {% endif %}" + STRIPS.replace(
    " | trim", ""
)

content = st.sampled_from(
    ["Hi", "Who?", "", " ", "\n", " a ", "é", "日本\u3000", "\u00a0x", "100 %s", "<|im_end|>", None]
)
message = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "user", "assistant", "system", "gpt", "tool", None])},
    optional={"content": content, "name": st.sampled_from([None, "n"])},
)
turn = st.tuples(content, content).map(
    lambda texts: [{"role": "user", "content": texts[0]}, {"role": "assistant", "content": texts[1]}]
)
row = st.fixed_dictionaries(
    {"messages": st.one_of(turn, turn, turn, st.lists(message, max_size=4), st.none())},
    optional={
        "tools": st.sampled_from([None, [], ['{"name": "f"}']]),
        "system": st.sampled_from([None, "", "Be brief."]),
        "chat_template_kwargs": st.sampled_from([None, {"enable_thinking": True, "custom_instructions": "é {}"}]),
    },
)


def prepared(file: Path, store: Path, tokenizer: Path, template: str) -> TokenStore:
    chat_template = store.with_suffix(".jinja")
    chat_template.write_text(template, encoding="utf-8")
    config = {
        "sources": [{"path": str(file), "format": "messages"}],
        "tokenizer": str(tokenizer),
        "chat_template": str(chat_template),
        "max_reject_fraction": 1,
        "actors": 0,
    }
    return prepare(DataConfig.model_validate(config), store)


def documents(store: TokenStore) -> list[Any]:
    return [
        (document.input_ids.tolist(), document.mask_runs.tolist())
        for document in (store.document(number) for number in range(len(store)))
    ]


def rejects(store: TokenStore) -> list[Any]:
    lines = (store.folder / "rejects.jsonl").read_text(encoding="utf-8").splitlines()
    found = [json.loads(line) for line in lines]
    return sorted((reject["row"], reject["kind"], reject["reason"]) for reject in found)


@pytest.mark.parametrize("template", [STRIPS, WITH_ARGUMENTS])
@given(rows=st.lists(row, min_size=1, max_size=30))
@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_columns_and_rows_give_the_same(
    template: str, rows: list[dict[str, Any]], store: TokenStore, tmp_path_factory: pytest.TempPathFactory
) -> None:
    rows = [*rows, {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}]
    folder = tmp_path_factory.mktemp("columns")
    table = pa.Table.from_pylist(rows, SCHEMA)
    pq.write_table(table, folder / "rows.parquet", row_group_size=5)
    with pa.OSFile(str(folder / "rows.arrow"), "wb") as sink, pa.ipc.new_stream(sink, SCHEMA) as writer:
        writer.write_table(table, max_chunksize=4)
    write_jsonl(folder / "rows.jsonl", table.to_pylist())
    stores = [
        prepared(folder / f"rows.{form}", folder / form, store.folder / "tokenizer", template)
        for form in ("jsonl", "parquet", "arrow")
    ]
    assert documents(stores[1]) == documents(stores[0]) == documents(stores[2])
    assert rejects(stores[1]) == rejects(stores[0]) == rejects(stores[2])


def test_plain_chats_are_told_from_others_row_by_row() -> None:
    said = {"role": "user", "content": "Hi"}
    rows = [[said], None, [], [said, {"role": "judge", "content": "x"}], [said, {**said, "name": "n"}], [said, said]]
    block = pa.RecordBatch.from_pylist([{"messages": messages} for messages in rows], SCHEMA).slice(0)
    chats = plain_chats(block, "messages")
    assert chats.rows.tolist() == [0, 5]
    assert chats.starts.tolist() == [0, 1, 3]
    assert [chats.names[speaker] for speaker in chats.speakers] == ["user"] * 3
    assert chats.contents.to_pylist() == ["Hi"] * 3
    assert plain_chats(block.slice(4, 2), "messages").rows.tolist() == [1]
    assert len(plain_chats(block, "source")) == len(plain_chats(block, "other")) == 0


def test_chats_below_a_system_column_are_no_plain_chats() -> None:
    rows = [{"messages": [{"role": "user", "content": "Hi"}], "system": said} for said in (None, "", "Be brief.")]
    assert plain_chats(pa.RecordBatch.from_pylist(rows, SCHEMA), "messages").rows.tolist() == [0, 1]


def test_bytes_that_are_no_text_are_left_to_whoever_makes_objects() -> None:
    text = pa.StringArray.from_buffers(1, pa.py_buffer(b"\0\0\0\0\1\0\0\0"), pa.py_buffer(b"\xff"))
    messages = pa.StructArray.from_arrays([pa.array(["user"]), text], ["role", "content"])
    column = pa.ListArray.from_arrays(pa.array([0, 1], pa.int32()), messages)
    assert len(plain_chats(pa.RecordBatch.from_arrays([column], ["messages"]), "messages")) == 0
