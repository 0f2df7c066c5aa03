"""Rows that are conversations, and rows that are not."""

from typing import Any

import pytest
from pydantic import ValidationError

from data_tools.config import SourceConfig
from data_tools.errors import RowError
from data_tools.formats import Conversation, PlainText, RowReader

USER = {"role": "user", "content": "Hi"}
ANSWER = {"role": "assistant", "content": "Hello"}


def to_conversation(row: dict[str, Any], **source: Any) -> Conversation:
    sample = RowReader(SourceConfig(path="rows", **{"format": "messages", **source})).read(row)
    assert isinstance(sample, Conversation)
    return sample


def test_null_fields_are_absent_fields() -> None:
    row = {
        "messages": [{**USER, "tool_calls": None}, ANSWER],
        "chat_template_kwargs": {"enable_thinking": False, "xml_tools": None, "python_tools": []},
    }
    conversation = to_conversation(row)
    assert conversation.messages == [USER, ANSWER]
    assert conversation.template_arguments == {"enable_thinking": False, "python_tools": []}
    assert conversation.tools is None


def contents(row: dict[str, Any], **source: Any) -> list[str]:
    return [message["content"] for message in to_conversation(row, **source).messages]


@pytest.mark.parametrize(
    ("row", "form"),
    [
        ({"messages": [USER, ANSWER]}, "messages"),
        ({"messages": [{"from": "human", "value": "Hi"}, ANSWER]}, "messages"),
        ({"conversations": [USER, ANSWER]}, "sharegpt"),
        ({"prompt": [USER], "completion": [ANSWER]}, "prompt_completion"),
        ({"prompt": "Hi", "completion": [ANSWER]}, "prompt_completion"),
    ],
)
def test_a_system_column_becomes_the_first_message(row: dict[str, Any], form: str) -> None:
    for nothing in (None, ""):
        assert contents({**row, "system": nothing}, format=form) == ["Hi", "Hello"]
    chat = to_conversation({**row, "system": "Be brief."}, format=form)
    assert chat.messages == [{"role": "system", "content": "Be brief."}, USER, ANSWER]
    assert chat.completion_from == (2 if form == "prompt_completion" else None)
    with pytest.raises(RowError, match="`system` is list, not text"):
        to_conversation({**row, "system": ["Be brief."]}, format=form)
    said_twice = {**row, next(iter(row)): [{"role": "System", "content": "Be long."}, USER, ANSWER]}
    with pytest.raises(RowError, match="`system` beside messages that begin with a system message"):
        to_conversation({**said_twice, "system": "Be brief."}, format=form)


def test_a_system_column_beside_columns_that_make_messages_becomes_the_first() -> None:
    row, columns = {"system": "Be brief.", "q": "Hi", "a": "Hello"}, {"user": "q", "assistant": "a"}
    assert contents(row, columns=columns) == ["Be brief.", "Hi", "Hello"]
    assert contents(row, columns={**columns, "system": "{system} Now."}) == ["Be brief. Now.", "Hi", "Hello"]


def test_a_system_column_beside_plain_texts_is_not_lost() -> None:
    row = {"system": "Be brief.", "prompt": "Hi", "completion": "Hello"}
    with pytest.raises(RowError, match=r"`system` has no place .*columns: {prompt: "):
        RowReader(SourceConfig(path="rows", format="prompt_completion")).read(row)
    composed = SourceConfig(path="rows", format="prompt_completion", columns={"prompt": "{system}\n\n{prompt}"})
    assert RowReader(composed).read(row) == PlainText("Be brief.\n\nHi", "Hello")


@pytest.mark.parametrize(
    "tools", [[{"name": "f"}], ['{"name": "f"}'], '[{"name": "f"}]'], ids=["objects", "strings", "one string"]
)
def test_tools_come_as_objects(tools: Any) -> None:
    assert to_conversation({"messages": [USER, ANSWER], "tools": tools}).tools == [{"name": "f"}]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"text": "Hi"}, "no `messages` column; the columns are text"),
        ({"messages": []}, "`messages` is empty"),
        ({"messages": "{"}, "`messages` is not JSON"),
        ({"messages": 3}, "`messages` is not a list"),
        ({"messages": [USER]}, "no assistant turn"),
        ({"messages": [{"content": "Hi"}, ANSWER]}, "message 0 has no role"),
        ({"messages": [USER, {"role": "assistant", "content": None}]}, r"message 1 \(assistant\) has no content"),
        ({"messages": [USER, {"role": "assistant", "content": 3}]}, "content is int, not text"),
        ({"messages": [USER, ANSWER], "tools": "["}, "`tools` is not JSON"),
        ({"messages": [USER, ANSWER], "tools": ["1"]}, "`tools` is not a list of objects"),
        ({"messages": [USER, ANSWER], "chat_template_kwargs": [1]}, "is not an object"),
        ({"messages": [USER, ANSWER], "chat_template_kwargs": {"tools": []}}, "has `tools`, which is no argument"),
    ],
)
def test_other_rows_are_refused_with_a_reason(row: dict[str, Any], reason: str) -> None:
    with pytest.raises(RowError, match=reason):
        to_conversation(row)


def test_a_role_is_mapped_to_one_that_there_is() -> None:
    """Else every row would be refused for having no assistant, or the template would meet a role it does not know."""
    with pytest.raises(ValidationError, match="'assistant'"):
        SourceConfig.model_validate({"path": "chats.jsonl", "roles": {"doctor": "asistant"}})
