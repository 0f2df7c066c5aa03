"""Rows as people store them → one `Conversation`."""

import json
from dataclasses import dataclass, field
from typing import Any

from data_tools.errors import RowError

Message = dict[str, Any]


@dataclass(frozen=True)
class Conversation:
    """One chat, ready for a template: messages with `role` and `content`, tool schemas, arguments of the template."""

    messages: list[Message]
    tools: list[dict[str, Any]] | None = None
    template_arguments: dict[str, Any] = field(default_factory=dict)


def to_conversation(row: dict[str, Any]) -> Conversation:
    """Read a row with a `messages` column, and `tools` and `chat_template_kwargs` where it has them.

    Raises:
        RowError: the row is not a conversation, or has nothing for the model to learn.
    """
    if "messages" not in row:
        raise RowError(f"no `messages` column; the columns are {', '.join(sorted(row)) or 'none'}")
    messages = [_message(raw, number) for number, raw in enumerate(_messages(row["messages"]))]
    if not any(message["role"] == "assistant" for message in messages):
        raise RowError("no assistant turn: there is nothing to learn")
    return Conversation(messages, _tools(row.get("tools")), _template_arguments(row.get("chat_template_kwargs")))


def _messages(value: Any) -> list[Any]:
    if isinstance(value, str):
        value = _parse_json(value, "messages")
    if not isinstance(value, list) or not value:
        raise RowError("`messages` is not a list of messages" if value else "`messages` is empty")
    return value


def _message(raw: Any, number: int) -> Message:
    """Absent and null fields are the same thing: columnar files fill the first with the second."""
    if not isinstance(raw, dict) or not isinstance(raw.get("role"), str):
        raise RowError(f"message {number} has no role")
    message = {key: value for key, value in raw.items() if value is not None}
    if not isinstance(message.get("content", ""), str):
        raise RowError(f"message {number}: content is {type(raw['content']).__name__}, not text")
    if not message.get("content", "").isascii() and not _is_unicode(message["content"]):
        raise RowError(f"message {number}: content has half of a surrogate pair, which is no Unicode text")
    if "content" not in message and "tool_calls" not in message:
        raise RowError(f"message {number} ({message['role']}) has no content")
    return message


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _tools(value: Any) -> list[dict[str, Any]] | None:
    """Tool schemas as a JSON string, a list of JSON strings, or a list of objects → a list of objects."""
    if isinstance(value, str):
        value = _parse_json(value, "tools") if value.strip() else None
    if not value:
        return None
    if not isinstance(value, list):
        raise RowError("`tools` is not a list")
    return [_parse_json(tool, "tools") if isinstance(tool, str) else tool for tool in value]


def _template_arguments(value: Any) -> dict[str, Any]:
    if isinstance(value, str):
        value = _parse_json(value, "chat_template_kwargs")
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise RowError("`chat_template_kwargs` is not an object")
    return {key: argument for key, argument in value.items() if argument is not None}


def _parse_json(text: str, column: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise RowError(f"`{column}` is not JSON: {error}") from None
