"""What a chat template would lose: it drops without a word tools, calls and messages that it was not written for."""

from collections import Counter
from dataclasses import replace
from typing import Any

from data_tools.errors import RowError
from data_tools.formats import Conversation
from data_tools.messages import Message, texts_in
from data_tools.template import JinjaTemplate


def check_tools(template: JinjaTemplate, conversation: Conversation, text: str) -> None:
    """Tools that the template never writes would be lost.

    Raises:
        RowError: the name of a tool is not in the text, or there only because messages say it.
    """
    for key, value in conversation.template_arguments.items():
        if key.endswith("tools") and value and key not in template.source:
            raise RowError(
                f"the chat template never reads `{key}` of `chat_template_kwargs`, they would be lost; use another "
                f"template"
            )
    if not conversation.tools:
        return
    names = [name for tool in conversation.tools if (name := _tool_name(tool)) is not None]
    lost = next((name for name in names if name not in text), None)
    said = "\n".join(texts_in(conversation.messages))
    if lost is None and (not names or any(name in said for name in names)):
        without = _without_tools(template, conversation)
        if without is not None and not names:
            lost = "" if without == text else None
        elif without is not None:  # messages name it as often
            lost = next((name for name in names if text.count(name) <= without.count(name)), None)
    if lost is not None:
        raise RowError(f"the chat template does not render the tool {lost!r}, it would be lost; use another template")


def check_tool_form(template: JinjaTemplate, conversation: Conversation) -> None:
    """Tools are handed over as they are, as transformers does: some templates want them wrapped.

    Raises:
        RowError: the template knows wrapped tools only, and one is not.
    """
    for tool in conversation.tools or []:
        if not isinstance(tool.get("function"), dict) and template.wants_wrapped_tools:
            raise RowError(
                f'the chat template wants tools as {{"type": "function", "function": {{…}}}}, and {_tool_name(tool)!r} '
                f"is a bare function; wrap it (with `function` of the source)"
            )


def check_messages(template: JinjaTemplate, conversation: Conversation, text: str) -> None:
    """Some templates skip messages of roles that they do not know, or a system message.

    What they only write otherwise (without its ends, as JSON) is not lost: other words would make another text.

    Raises:
        RowError: what a message says makes no difference.
    """
    messages = conversation.messages
    for number, message in enumerate(messages):
        content = message.get("content")
        if message["role"] == "assistant" or not isinstance(content, str) or content.strip() in text:
            continue
        other = [*messages[:number], {**message, "content": f"other than {content}"}, *messages[number + 1 :]]
        if template.text(conversation, other) == text:
            raise RowError(
                f"the chat template ignores message {number}, of role {message['role']}; use another template, or "
                f"take such messages out of the data"
            )


def _without_tools(template: JinjaTemplate, conversation: Conversation) -> str | None:
    """The text without tools; None where the template asks for some."""
    try:
        return template.text(replace(conversation, tools=None), conversation.messages)
    except RowError:
        return None


def _tool_name(tool: dict[str, Any]) -> str | None:
    function = tool.get("function")
    name = (function if isinstance(function, dict) else tool).get("name")
    return name if isinstance(name, str) else None


def check_calls(learnt: str, message: Message, number: int) -> None:
    """Some templates write the first of several calls and forget the others.

    Raises:
        RowError: a function is named less often than it is called.
    """
    calls = message.get("tool_calls", [])
    if len(calls) < 2:
        return
    for name, times in Counter(str(call["function"].get("name", "")) for call in calls).items():
        if 0 < learnt.count(name) < times:
            raise RowError(f"the chat template does not write all {len(calls)} tool calls of message {number}")
