"""Rows that are conversations, and rows that are not."""

from typing import Any

import pytest
from pydantic import ValidationError

from data_tools.config import SourceConfig
from data_tools.errors import RowError
from data_tools.formats import Conversation, RowReader

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
