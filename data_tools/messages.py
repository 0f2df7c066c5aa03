"""Messages as people write them → messages as chat templates want them."""

import json
import math
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from data_tools.errors import RowError

Message = dict[str, Any]

ROLES = {
    **dict.fromkeys(("system",), "system"),
    **dict.fromkeys(("developer",), "developer"),
    **dict.fromkeys(("user", "human", "prompter", "client", "customer", "question"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bot", "model", "counselor", "agent", "answer"), "assistant"),
    **dict.fromkeys(("tool", "function", "observation", "tool_response", "function_response", "ipython"), "tool"),
    **dict.fromkeys(("function_call", "tool_call"), "function_call"),
}
"""The names of roles that data sets use. A `function_call` becomes an assistant's message with `tool_calls`."""

PLAIN_ROLES = {"system", "user", "assistant", "tool"}
"""Roles that mean the same in rows and in templates."""

Parts = tuple[tuple[str, ...], list[str]]
"""The roles and the contents of messages."""

_FIELDS = {"from": "role", "value": "content"}
_SAME = {**_FIELDS, "thinking": "reasoning_content", "reasoning_content": "thinking"}
_SHORT = 4
"""Letters of fields for which a word with another letter is no slip: `game` is not `name`."""
_KNOWN = ("role", "content", "train", "weight", "name", "tool_calls", "tool_call_id", *_SAME)


def plain_parts(messages: list[Any]) -> Parts | None:
    """The parts of messages that have nothing else, and no blank content; None for others.

    This is the common case, nothing has to be done to such messages, and it has to be fast: no loop of ours.
    """
    try:
        roles = tuple([message["role"] for message in messages])
        contents = [message["content"] for message in messages]
        text = "".join(contents)  # a TypeError unless all are texts
        plain = PLAIN_ROLES.issuperset(roles) and sum(map(len, messages)) == 2 * len(messages)
    except (KeyError, TypeError):
        return None
    if not plain or not all(contents) or any(map(str.isspace, contents)):
        return None
    return (roles, contents) if text.isascii() or _is_unicode(text) else None


def _is_unicode(text: str) -> bool:
    """Whether a text has no half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def plain_message(role: str, content: str) -> Message:
    """A message that is nothing but text."""
    return {"role": role, "content": content}


def is_blank(message: Message) -> bool:
    """Whether a message says nothing: neither content nor reasoning nor calls."""
    said = [message.get("content"), message.get("reasoning_content"), message.get("thinking")]
    return not message.get("tool_calls") and not any(str(part).strip() for part in said if part is not None)


def message_list(value: Any, column: str) -> list[Any]:
    """A column of messages, or the JSON text of one.

    Raises:
        RowError: it is none, or empty.
    """
    if isinstance(value, str):
        value = parsed_json(value, f"`{column}`")
    if not isinstance(value, list) or not value:
        raise RowError(f"`{column}` is not a list of messages" if value else f"`{column}` is empty")
    return value


def read_messages(raw: list[Any], roles: dict[str, str]) -> tuple[list[Message], list[float] | None]:
    """Messages as templates want them, and their weights where rows say so.

    Args:
        raw: what a row holds.
        roles: name of a role in the rows → role.

    Raises:
        RowError: one of them is no message.
    """
    read = [_message(message, number, roles) for number, message in enumerate(raw)]
    weights = [weight for _, weight in read]
    return [message for message, _ in read], None if all(weight == 1 for weight in weights) else weights


def _message(raw: Any, number: int, roles: dict[str, str]) -> tuple[Message, float]:
    """Absent and null fields are the same thing: columnar files fill the first with the second."""
    if not isinstance(raw, dict):
        raise RowError(f"message {number} is not an object")
    message: Message = {str(key): value for key, value in raw.items() if value is not None}
    for field, name in _FIELDS.items():
        if field in message and name not in message:
            message[name] = message.pop(field)
    for key in message:
        meant = _slip_of(key)
        if meant is not None and not {meant, _SAME.get(meant)} & message.keys():
            raise RowError(f"message {number} has {key!r}; did you mean `{meant}`? Correct it, or rename the field")
    weight = _message_weight(message, number)
    role = message.get("role")
    if not isinstance(role, str):
        raise RowError(f"message {number} has no role")
    message["role"] = roles.get(role, roles.get(role.lower(), ""))
    if not message["role"]:
        raise RowError(f"message {number} has the unknown role {role!r}; map it in the source's `roles`")
    if "content" in message:
        message["content"] = _content(message["content"], number)
    if message["role"] == "function_call":
        message = {"role": "assistant", "tool_calls": parsed_json(message.get("content", ""), f"message {number}")}
    if message.get("tool_calls", []) != []:
        message["tool_calls"] = _tool_calls(message["tool_calls"], number)
    reasoning = message.get("reasoning_content", message.get("thinking"))
    if reasoning is not None:  # templates know it by one name or the other
        message |= {"reasoning_content": reasoning, "thinking": reasoning}
    if not message.get("tool_calls") and "content" not in message:
        raise RowError(f"message {number} ({message['role']}) has no content")
    return message, weight


@lru_cache(1024)
def _slip_of(key: str) -> str | None:
    """The known field of which another is a slip of the pen: case, a letter more or less, another, or two swapped."""
    key = key.lower()
    for known in _KNOWN:
        start = next((n for n, (a, b) in enumerate(zip(key, known, strict=False)) if a != b), min(len(key), len(known)))
        rest, right = key[start:], known[start:]
        swapped = rest[:2] == right[1::-1] and rest[2:] == right[2:]
        another = rest[1:] == right[1:] and len(known) > _SHORT
        if key == known or rest[1:] == right or rest == right[1:] or swapped or another:
            return known
    return None


def _message_weight(message: Message, number: int) -> float:
    """Take `train` and `weight` out of a message: they are for us, not for the template."""
    train, weight = message.pop("train", True), message.pop("weight", 1.0)
    if not isinstance(train, bool):
        raise RowError(f"message {number}: `train` is {train!r}, not true or false")
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < math.inf:
        raise RowError(f"message {number}: `weight` is {weight!r}, not a number from 0")
    return float(weight) if train else 0.0


def _content(content: Any, number: int) -> str:
    """Text, or the text parts of typed content together."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise RowError(f"message {number}: content is {type(content).__name__}, not text")
    texts = []
    for part in content:
        kind = (part.get("type") or "text") if isinstance(part, dict) else "text"
        text = part.get("text") if isinstance(part, dict) else part
        if kind != "text" or not isinstance(text, str):
            raise RowError(f"message {number}: a content part of type {kind!r} is not text")
        texts.append(text)
    return "".join(texts)


def _tool_calls(value: Any, number: int) -> list[Any]:
    """Calls as a list or one object; arguments that are a JSON string become the object that templates expect."""
    calls = parsed_json(value, f"message {number}: `tool_calls`")
    calls = [
        parsed_json(call, f"message {number}: `tool_calls`") for call in (calls if isinstance(calls, list) else [calls])
    ]
    if not all(isinstance(call, dict) and isinstance(call.get("function") or {}, dict) for call in calls):
        raise RowError(f"message {number}: `tool_calls` is not a list of objects")
    return [_tool_call(call) for call in calls]


def _tool_call(call: dict[str, Any]) -> dict[str, Any]:
    function = dict(call.get("function") or {key: call[key] for key in ("name", "arguments") if key in call})
    if isinstance(function.get("arguments"), str):
        try:
            parsed = json.loads(function["arguments"])
        except (ValueError, RecursionError):
            parsed = None  # an argument that is text and nothing else
        if isinstance(parsed, dict):
            function["arguments"] = parsed
    return (
        {"type": "function", **call, "function": function}
        if "function" in call
        else {"type": "function", "function": function}
    )


def texts_in(value: Any) -> Iterator[str]:
    """All texts in lists and objects, the names of fields too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from texts_in(key)
            yield from texts_in(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from texts_in(item)


def parsed_json(value: Any, what: str) -> Any:
    """JSON text becomes what it says; anything else stays.

    Raises:
        RowError: the text is no JSON.
    """
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise RowError(f"{what} is not JSON: {error}") from None
