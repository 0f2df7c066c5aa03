"""What is rendered quickly is what transformers renders, and the sandbox keeps in what it kept in."""

from datetime import date
from pathlib import Path
from typing import Any

import pytest

from data_tools.errors import RowError
from data_tools.formats import Conversation
from data_tools.messages import Message
from data_tools.template import JinjaTemplate
from tests.data_tools.templates import TEMPLATES

CALL = {"type": "function", "id": "123456789", "function": {"name": "get_time", "arguments": {"zone": "UTC"}}}
MESSAGES: list[Message] = [
    {"role": "system", "content": "Be {brief}.", "items": "field", "_own": "field"},
    {"role": "user", "content": " Hi\n"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": "12:00"},
    {"role": "assistant", "content": "\nIt is noon.", "reasoning_content": "Noon."},
]
CHATS = [
    Conversation(MESSAGES, [CALL]),
    Conversation(MESSAGES[1:2] + MESSAGES[4:]),
    Conversation(MESSAGES[1:2] + MESSAGES[4:] + MESSAGES[1:2] + MESSAGES[4:], template_arguments={"thinking": True}),
]


def both(source: str, conversation: Conversation) -> list[Any]:
    """The text and the spans, or why there are none: here, and by transformers."""
    template = JinjaTemplate(source, {"bos_token": "<s>", "eos_token": "</s>"}, date(2025, 1, 1))

    def rendered() -> Any:
        try:
            return template.tagged_text(conversation)
        except RowError as error:
            return str(error)

    quick = rendered()
    with template.by_transformers():
        return [quick, rendered()]


@pytest.mark.parametrize("name", TEMPLATES)
def test_templates_in_the_manner_of_many_models(name: str) -> None:
    for chat in CHATS:
        quick, slow = both(TEMPLATES[name], chat)
        assert quick == slow


def test_real_templates(real_data: Path) -> None:
    for file in (real_data / "chat_templates").glob("*.jinja"):
        for chat in CHATS:
            quick, slow = both(file.read_text("utf-8"), chat)
            assert quick == slow


@pytest.mark.parametrize(
    "expression",
    [
        "messages[0].items",
        "messages[0].items()",
        "messages[0]._own",
        "messages[0].nothing",
        "messages[0].nothing.more",
        "messages[0].__class__",
        "messages[0].update(role='x')",
        "messages.append(1)",
        "messages[0].content.__class__",
        "messages[0].content.format(brief='short')",
        "'{0.__class__}'.format(1)",
        "'{brief.__class__}'.format_map(messages[0])",
        "messages[0].content.format.__globals__",
        "messages[0].content.strip.__self__",
        "messages[0].content['upper']()",
        "'-'.join(messages | map(attribute='role'))",
        "messages[0].content.replace('brief', 1)",
        "messages[0].content.split(sep='r', maxsplit=1)",
        "cycler('a', 'b').next()",
        "strftime_now('%d') ~ strftime_now('%Y')",
        "(messages[0] | string).upper() ~ loop",
    ],
)
def test_attributes_and_calls(expression: str) -> None:
    for source in ("{{ EXPRESSION }}", "{% for m in messages %}{{ m.role }}{{ EXPRESSION }}{% endfor %}"):
        quick, slow = both(source.replace("EXPRESSION", expression), CHATS[0])
        assert quick == slow


@pytest.mark.parametrize(
    "source",
    [
        "a{% generation %}b{% endgeneration %}{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}"
        "{% endfor %}",
        "a{% generation %}b{% generation %}c{% endgeneration %}d{% endgeneration %}e",
        "{% macro f() %}x{% generation %}y{% endgeneration %}{% endmacro %}a{{ f() }}b{{ f() }}",
        "{% set x %}{% generation %}y{% endgeneration %}{% endset %}a{{ x }}",
        "a{% generation %}{{ caller }}{% endgeneration %}",
        "a{% for m in messages %}{% generation %}{% set x = m.role %}{{ x }}{% endgeneration %}{{ x }}{% endfor %}",
    ],
)
def test_generations_anywhere(source: str) -> None:
    quick, slow = both(source, CHATS[0])
    assert quick == slow


def test_the_sandbox_keeps_texts_and_messages_in() -> None:
    for expression in (
        "''.__class__.mro()",
        "messages[0].__class__.mro()",
        "messages.append(1)",
        "''.strip.__self__ + 'x'",
    ):
        quick, _ = both("{{ " + expression + " }}", CHATS[0])
        assert "is unsafe" in quick


def test_arguments_do_not_replace_messages() -> None:
    quick, _ = both("{{ messages }}", Conversation(MESSAGES[:2], template_arguments={"messages": []}))
    assert "multiple values for keyword argument 'messages'" in quick
