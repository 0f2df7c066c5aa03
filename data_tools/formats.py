"""Rows as people store them → a conversation, plain text, or tokens.

    messages           {"messages": [{"role": "user", "content": …}, …], "system": …, "tools": …, …}
    sharegpt           {"conversations": [{"from": "human", "value": …}, …], "system": …, "tools": …, …}
    prompt_completion  {"prompt": …, "completion": …}                       both texts, or both lists of messages
    instruction        {"instruction": …, "input": …, "output" | "response": …, "system": …, "history": …}
    text               {"text": …}
    tokens             {"input_ids": …, "labels" | "assistant_masks" | "completion_mask" | "loss_mask": …}

The format is told by the columns of a source's first row, after `columns` and `function` of its configuration.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from data_tools.columns import compose_columns, load_function
from data_tools.config import SourceConfig
from data_tools.errors import RowError, UserError
from data_tools.messages import (
    PLAIN_ROLES,
    ROLES,
    Message,
    Parts,
    message_list,
    parsed_json,
    plain_message,
    plain_parts,
    read_messages,
)
from data_tools.tokens import Tokens, read_tokens

Row = dict[str, Any]


@dataclass(slots=True)  # not frozen: one is made for every row, and freezing makes that three times slower
class Conversation:
    """One chat, ready for a template."""

    messages: list[Message]
    """With `role` and `content`, as the template is to see them."""
    tools: list[Any] | None = None
    template_arguments: dict[str, Any] = field(default_factory=dict)
    weights: list[float] | None = None
    """How much each message is learnt, where rows say so; None: all alike."""
    completion_from: int | None = None
    """The first message of the completion, where rows part it from the prompt."""
    parts: Parts | None = None
    """Roles and contents, where messages are nothing else."""


@dataclass(frozen=True)
class PlainText:
    """Text without a template: the completion is learnt, the prompt before it is not."""

    prompt: str
    completion: str


Sample = Conversation | PlainText | Tokens


class RowReader:
    """Reads the rows of one source, whose configuration names the format.

    Raises:
        UserError: `function` does not work.
    """

    def __init__(self, source: SourceConfig) -> None:
        self._function = load_function(source.function) if source.function else None
        self._columns = source.columns
        self._roles = {**ROLES, **{name.lower(): role for name, role in source.roles.items()}}
        self._plain = not PLAIN_ROLES & source.roles.keys()  # a source may swap user and assistant
        read: Callable[[Row], Sample] = {
            "messages": self._messages_row,
            "sharegpt": self._sharegpt_row,
            "prompt_completion": self._prompt_completion_row,
            "instruction": self._instruction_row,
            "text": _text_row,
            "tokens": read_tokens,
        }[source.format]

        as_they_are = source.format == "messages" and self._plain and not (source.function or source.columns)
        self.chats = "messages" if as_they_are else None
        """The column of chats, where messages of nothing but `role` and `content` are what they say."""
        self.read = read if not (source.function or source.columns) else lambda row: read(self._adapted(row))
        """One row of the source → a sample; RowError: it is not what the format says, or has nothing to learn."""

    def _adapted(self, row: Row) -> Row:
        return adapted(row, self._function, self._columns)

    def _messages_row(self, row: Row) -> Conversation:
        if "messages" not in row:
            raise RowError(f"no `messages` column; the columns are {', '.join(sorted(row)) or 'none'}")
        return self._conversation(row, row["messages"], "messages")

    def _sharegpt_row(self, row: Row) -> Conversation:
        column = "conversations" if "conversations" in row else "conversation"
        if column not in row:
            raise RowError(f"no `conversations` column; the columns are {', '.join(sorted(row)) or 'none'}")
        return self._conversation(row, row[column], column)

    def _conversation(self, row: Row, value: Any, column: str) -> Conversation:
        messages, weights = message_list(value, column), None
        parts = plain_parts(messages) if self._plain and not row.get("system") else None
        if parts is None:
            messages, weights = self._read_below_system(row, messages)
            parts = plain_parts(messages)
        if "assistant" not in (parts[0] if parts else [message["role"] for message in messages]):
            raise RowError("no assistant turn: there is nothing to learn")
        tools, arguments = row.get("tools"), row.get("chat_template_kwargs")
        if tools is None and arguments is None:
            return Conversation(messages, None, {}, weights, None, parts)
        return Conversation(messages, _tools(tools), template_arguments(arguments), weights, None, parts)

    def _read_below_system(self, row: Row, raw: list[Any]) -> tuple[list[Message], list[float] | None]:
        """The messages and their weights; a `system` column becomes the first."""
        (messages, weights), system = read_messages(raw, self._roles), _text(row, "system", "")
        if not system:
            return messages, weights
        if messages[0]["role"] == "system":
            raise RowError("a text in `system` beside messages that begin with a system message; give it once")
        return [plain_message("system", system), *messages], weights and [1.0, *weights]

    def _prompt_completion_row(self, row: Row) -> Sample:
        prompt, completion = row.get("prompt"), row.get("completion")
        if isinstance(completion, str) and (prompt is None or isinstance(prompt, str)):
            if row.get("system") and "prompt" not in (self._columns or {}):
                raise RowError(
                    "`system` has no place beside a prompt and a completion that are texts; put it in with "
                    'columns: {prompt: "{system}\\n\\n{prompt}"}'
                )
            if not completion.strip():
                raise RowError("the answer is empty (`completion`)")
            return PlainText(prompt or "", completion)
        asked = message_list(prompt, "prompt") if not isinstance(prompt, str) else [plain_message("user", prompt)]
        answered = (
            message_list(completion, "completion")
            if not isinstance(completion, str)
            else [plain_message("assistant", completion)]
        )
        messages, weights = self._read_below_system(row, [*asked, *answered])
        return Conversation(
            messages,
            _tools(row.get("tools")),
            template_arguments(row.get("chat_template_kwargs")),
            weights,
            len(messages) - len(answered),
            plain_parts(messages),
        )

    def _instruction_row(self, row: Row) -> Conversation:
        question = "\n\n".join(part for part in (_text(row, "instruction"), _text(row, "input", "")) if part)
        answer = _text(row, "output" if row.get("output") is not None else "response")
        asked = [*_system(_text(row, "system", "")), *_history(row.get("history")), plain_message("user", question)]
        tools, arguments = _tools(row.get("tools")), template_arguments(row.get("chat_template_kwargs"))
        messages = [*asked, plain_message("assistant", answer)]
        return Conversation(messages, tools, arguments, parts=plain_parts(messages))


def adapted(row: Row, function: Callable[[Row], Row] | None, columns: dict[str, str] | None) -> Row:
    """A row after the function and the column map of its source."""
    row = function(row) if function else row
    return compose_columns(row, columns) if columns else row


def with_format(source: SourceConfig, first_row: Row) -> SourceConfig:
    """The configuration of a source with its format, told by a row where the configuration says `auto`.

    Raises:
        UserError: no format has such columns, or `columns` or `function` do not work.
    """
    function = load_function(source.function) if source.function else None
    try:
        row = adapted(first_row, function, source.columns)
        return source if source.format != "auto" else source.model_copy(update={"format": detect_format(row)})
    except RowError as error:
        raise UserError(
            f"data.sources: the first row of {source.name or source.path or source.sample}: {error}"
        ) from None


def detect_format(row: Row) -> str:
    """The format of a row, by its columns.

    Raises:
        RowError: no format has such columns.
    """
    columns = {name for name, value in row.items() if value is not None}
    for name, needed in (
        ("messages", [{"messages"}]),
        ("sharegpt", [{"conversations"}, {"conversation"}]),
        ("prompt_completion", [{"prompt", "completion"}]),
        ("instruction", [{"instruction", "output"}, {"instruction", "response"}]),
        ("tokens", [{"input_ids"}]),
        ("text", [{"text"}]),
    ):
        if any(each <= columns for each in needed):
            return name
    raise RowError(
        f"no known format has the columns {', '.join(sorted(columns)) or 'none'}; say what they are, for "
        f'example `columns: {{user: "{{question}}", assistant: "{{answer}}"}}`'
    )


def _system(text: str) -> list[Message]:
    return [plain_message("system", text)] if text else []


def _history(value: Any) -> list[Message]:
    """Pairs of a question and its answer, which came before."""
    pairs = value or []
    if not isinstance(pairs, list) or not all(
        isinstance(pair, list | tuple) and len(pair) == 2 and all(isinstance(text, str) for text in pair)
        for pair in pairs
    ):
        raise RowError("`history` is not a list of pairs of texts")
    return [plain_message(role, text) for pair in pairs for role, text in zip(("user", "assistant"), pair, strict=True)]


def _tools(value: Any) -> list[Any] | None:
    """Tool schemas as a JSON string, a list of JSON strings, or a list of objects → a list of objects."""
    if isinstance(value, str):
        value = parsed_json(value, "`tools`") if value.strip() else None
    if not value:
        return None
    if not isinstance(value, list):
        raise RowError("`tools` is not a list")
    tools = [parsed_json(tool, "`tools`") for tool in value]
    if not all(isinstance(tool, dict) for tool in tools):
        raise RowError("`tools` is not a list of objects")
    return tools


_NO_ARGUMENTS = {"messages", "tools", "documents", "add_generation_prompt"}
"""What the template is given anyway; `tools` of a row are a column of their own."""


def template_arguments(value: Any) -> dict[str, Any]:
    """What a row hands to its template, as an object or the JSON text of one; null fields are none.

    Raises:
        RowError: it is neither.
    """
    value = parsed_json(value, "`chat_template_kwargs`")
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise RowError("`chat_template_kwargs` is not an object")
    if given := _NO_ARGUMENTS & value.keys():
        raise RowError(f"`chat_template_kwargs` has `{min(given)}`, which is no argument of the row's; remove it")
    return {key: argument for key, argument in value.items() if argument is not None}


def _text(row: Row, column: str, default: str | None = None) -> str:
    value = row.get(column)
    if value is None and default is not None:
        return default
    if not isinstance(value, str):
        raise RowError(f"`{column}` is {'missing' if value is None else type(value).__name__}, not text")
    return value


def _text_row(row: Row) -> PlainText:
    return PlainText("", _text(row, "text"))
