"""A tokenizer's chat template: messages → text, with the date frozen."""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import date, datetime, time
from functools import cached_property, lru_cache, partial
from typing import Any

import jinja2
from transformers.utils.chat_template_utils import _compile_jinja_template, _render_with_assistant_indices

from data_tools.errors import RowError, UserError
from data_tools.formats import Conversation
from data_tools.messages import Message
from data_tools.sandbox import CharSpan, CompiledTemplate

_GENERATION_TAG = re.compile(r"\{%-?\s*generation\s*-?%\}")
_PROBE = "shardtune-probe-answer"

_TEMPLATE_ERRORS = (jinja2.TemplateError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
"""What a template, which is a small program, may raise on a row that it was not written for."""


class JinjaTemplate:
    """A compiled chat template.

    Args:
        source: the Jinja text.
        special_tokens: `bos_token`, `eos_token`, … as the tokenizer hands them to its template.
        today: what `strftime_now` answers.

    Raises:
        UserError: the source is not valid Jinja.
    """

    def __init__(self, source: str, special_tokens: dict[str, Any], today: date) -> None:
        self.source = source
        self.has_generation_tags = bool(_GENERATION_TAG.search(source))
        compile_template(source, "the chat template")
        self._render: Callable[..., tuple[str, list[CharSpan]]] = CompiledTemplate(source).render
        self._context = {**special_tokens, "strftime_now": _frozen_strftime(today)}
        self._wants_parts = False
        self._no_content: dict[str, str | None] = {}
        self.header = ""
        """What the template writes before an answer, as far as it also asks for one with it."""
        self.end_of_turn = self._probe()
        self._no_content = self._probe_calls()

    def syntax_tree(self) -> jinja2.nodes.Template:
        """The parsed source."""
        tree: jinja2.nodes.Template = compile_template(self.source, "the chat template").environment.parse(self.source)
        return tree

    def text(self, conversation: Conversation, messages: Sequence[Message], add_generation_prompt: bool = False) -> str:
        """Render messages with the conversation's tools and arguments.

        Raises:
            RowError: the template refuses them.
        """
        return self._rendered(conversation, messages, add_generation_prompt)[0]

    def tagged_text(self, conversation: Conversation) -> tuple[str, list[CharSpan]]:
        """Render a whole conversation; the spans are what the template's `{% generation %}` tags enclose.

        Raises:
            RowError: the template refuses it.
        """
        return self._rendered(conversation, conversation.messages, False)

    @contextmanager
    def by_transformers(self) -> Iterator[None]:
        """Render by transformers itself as long as this lasts."""
        quick, compiled = self._render, compile_template(self.source, "the chat template")
        self._render = partial(_render_with_assistant_indices, compiled)
        try:
            yield
        finally:
            self._render = quick

    def _rendered(
        self, conversation: Conversation, messages: Sequence[Message], add_generation_prompt: bool
    ) -> tuple[str, list[CharSpan]]:
        try:
            return self._render(
                messages=self._content_style(messages),
                tools=conversation.tools,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **{**self._context, **conversation.template_arguments},
            )
        except _TEMPLATE_ERRORS as error:
            raise RowError(f"the chat template refuses the conversation: {error}") from None

    def _content_style(self, messages: Sequence[Message]) -> list[Message]:
        """Some templates want content as a list of typed parts, or know another word for none beside tool calls."""
        if self._no_content:
            messages = [
                {**message, **self._no_content} if message.get("tool_calls") and not message.get("content") else message
                for message in messages
            ]
        if not self._wants_parts:
            return list(messages)
        return [
            message
            if message.get("content") is None
            else {**message, "content": [{"type": "text", "text": message["content"]}]}
            for message in messages
        ]

    def _probe(self) -> str | None:
        """Learn how the template wants content, and what it writes after an answer: `<|im_end|>`, `</s>`, …

        Returns:
            The text after an answer up to the line break; None where the template refuses two plain messages.
        """
        messages = [{"role": "user", "content": "Question?"}, {"role": "assistant", "content": _PROBE}]
        for self._wants_parts in (False, True):
            try:
                text = self.text(Conversation(messages), messages)
            except RowError:
                continue
            before, found, after = text.rpartition(_PROBE)
            if found and not before.endswith(("'", '"')):  # quoted: the template printed a list of parts as it is
                self.header = self._asked_header(messages[:1], before)
                return after.split("\n")[0].strip() or None
        self._wants_parts = False
        return None

    def _probe_calls(self) -> dict[str, str | None]:
        """Learn what a message with tool calls and nothing else has for its content: nothing at all, null or `""`."""
        call = {"type": "function", "id": "shardtune", "function": {"name": _PROBE, "arguments": {}}}
        messages: list[Message] = [
            {"role": "user", "content": "Question?"},
            {"role": "assistant", "tool_calls": [call]},
        ]
        nothing: list[dict[str, str | None]] = [{}, {"content": None}, {"content": ""}]
        for self._no_content in nothing:
            try:
                text = self.text(Conversation(messages), messages)
            except RowError:
                continue
            if _PROBE in text and "None" not in text:
                return self._no_content
        return {}

    @cached_property
    def wants_wrapped_tools(self) -> bool:
        """Whether tools are only written where they are `{"type": "function", "function": …}`."""
        bare = {"name": _PROBE, "description": "Probe.", "parameters": {"type": "object", "properties": {}}}
        return self._writes_tool({"type": "function", "function": bare}) and not self._writes_tool(bare)

    def _writes_tool(self, tool: dict[str, Any]) -> bool:
        messages = [{"role": "user", "content": "Question?"}, {"role": "assistant", "content": "Answer."}]
        try:
            return _PROBE in self.text(Conversation(messages, [tool]), messages)
        except RowError:
            return False

    def _asked_header(self, messages: list[Message], before: str) -> str:
        try:
            unasked = self.text(Conversation(messages), messages)
            asking = self.text(Conversation(messages), messages, add_generation_prompt=True)
        except RowError:
            return ""
        if not before.startswith(unasked):  # a template that closes every text
            unasked = unasked.removesuffix(str(self._context.get("eos_token")))
        return common_prefix(asking, before)[len(common_prefix(unasked, before)) :]


def compile_template(source: str, name: str) -> jinja2.Template:
    """Compile the Jinja text of a template that people know by `name`.

    Raises:
        UserError: it is not valid, with the line.
    """
    try:
        compiled: jinja2.Template = _compile_jinja_template(source)
    except jinja2.TemplateSyntaxError as error:
        raise UserError(f"{name} is not valid Jinja: line {error.lineno}: {error.message}") from None
    return compiled


def common_prefix(first: str, second: str) -> str:
    """The longest start that two texts share."""
    if second.startswith(first):
        return first
    same, different = 0, len(first)
    while different - same > 1:
        middle = (same + different) // 2
        if second.startswith(first[same:middle], same):
            same = middle
        else:
            different = middle
    return first[:same]


def _frozen_strftime(today: date) -> Callable[[str], str]:
    return lru_cache(32)(datetime.combine(today, time(0)).strftime)
