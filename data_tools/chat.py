"""Conversation → text and the spans of it that the model learns, side by side so that they cannot drift.

    text   <|im_start|>user\\nHi<|im_end|>\\n<|im_start|>assistant\\nHello!<|im_end|>\\n
    spans                                                          [Hello!<|im_end|>]

Spans come from the template's own `{% generation %}` tags where it has them, else from the difference between the text
rendered up to a turn and the text rendered with it. Never from searching for known strings.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, datetime, time
from typing import Any

import jinja2
from transformers.utils.chat_template_utils import _compile_jinja_template, _render_with_assistant_indices

from data_tools.errors import RowError, UserError
from data_tools.formats import Conversation, Message

Span = tuple[int, int]
"""Characters [start, end) of the rendered text."""

_GENERATION_TAG = re.compile(r"\{%-?\s*generation\s*-?%\}")


_TEMPLATE_ERRORS = (jinja2.TemplateError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
"""What a template, which is a small program, may raise on a row that it was not written for."""


@dataclass(frozen=True)
class RenderedChat:
    """The whole conversation as the model sees it, and the parts it learns, in order and apart."""

    text: str
    spans: list[Span]


class ChatTemplate:
    """A tokenizer's chat template with the date frozen.

    Args:
        source: the Jinja text.
        special_tokens: `bos_token`, `eos_token`, … as the tokenizer hands them to its template.
        today: what `strftime_now` answers.
    """

    def __init__(self, source: str, special_tokens: dict[str, Any], today: date) -> None:
        self.source = source
        self.has_generation_tags = bool(_GENERATION_TAG.search(source))
        try:
            self._compiled = _compile_jinja_template(source)
        except jinja2.TemplateSyntaxError as error:
            raise UserError(f"the chat template is not valid Jinja: line {error.lineno}: {error.message}") from None
        self._context = {**special_tokens, "strftime_now": _frozen_strftime(today)}
        self.end_of_turn = self._find_end_of_turn()

    def render(self, conversation: Conversation) -> RenderedChat:
        """Render a whole conversation and find what the model learns of it: the assistant's turns with their end.

        Raises:
            RowError: the template refuses the conversation, rewrites earlier turns, or loses an answer.
        """
        if self.has_generation_tags:
            text, spans = self._render_tagged(conversation)
        else:
            text, spans = self._render_by_prefixes(conversation)
        spans = _merge_touching(spans)
        self._prove(conversation, text, spans)
        return RenderedChat(text, spans)

    def prompt(self, messages: list[Message], **arguments: Any) -> str:
        """Render messages followed by the header of the assistant's next turn.

        Raises:
            UserError: the template refuses them.
        """
        try:
            return self._text(
                Conversation(messages, template_arguments=arguments), messages, add_generation_prompt=True
            )
        except RowError as error:
            raise UserError(f"cannot ask {messages[-1]['content'][:60]!r}: {error}") from None

    def _render_tagged(self, conversation: Conversation) -> tuple[str, list[Span]]:
        try:
            text, spans = _render_with_assistant_indices(
                compiled_template=self._compiled,
                messages=conversation.messages,
                tools=conversation.tools,
                documents=None,
                add_generation_prompt=False,
                **self._arguments(conversation),
            )
            text.encode()  # half of a surrogate pair is valid JSON, but no text
        except _TEMPLATE_ERRORS as error:
            raise RowError(f"the chat template refuses the conversation: {error}") from None
        return text, spans

    def _render_by_prefixes(self, conversation: Conversation) -> tuple[str, list[Span]]:
        """A turn is what rendering one message more adds to the text that asks for it (proved for every turn)."""
        messages = conversation.messages
        text = self._text(conversation, messages)
        spans: list[Span] = []
        for number, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before = self._text(conversation, messages[:number], add_generation_prompt=True)
            through = self._text(conversation, messages[: number + 1])
            if not (text.startswith(before) and text.startswith(through)):
                raise RowError(f"the chat template rewrites earlier turns: message {number} has no fixed place")
            spans.append((len(before), self._turn_end(through, len(before))))
        return text, spans

    def _turn_end(self, through: str, start: int) -> int:
        """Cut the line break that templates write after the end-of-turn token: the model never has to say it."""
        if self.end_of_turn and (found := through.rfind(self.end_of_turn, start)) >= 0:
            end = found + len(self.end_of_turn)
            if not through[end:].strip():
                return end
        return len(through)

    def _prove(self, conversation: Conversation, text: str, spans: list[Span]) -> None:
        """Every answer is inside the trained text, in order, and the end of the last one is, or the row is refused."""
        trained = "".join(text[start:end] for start, end in spans)
        position = 0
        for number, message in enumerate(conversation.messages):
            if message["role"] == "assistant":
                answer = message.get("content", "").strip()
                position = trained.find(answer, position) + len(answer)
                if position < len(answer):
                    raise RowError(f"the trained text does not contain the answer of message {number}")
        if not spans:
            raise RowError("nothing to learn: the template renders no answer")
        start, end = spans[-1]
        if self.end_of_turn and self.end_of_turn not in text[start:end]:
            raise RowError(f"the end of the last turn ({self.end_of_turn}) is not trained: a model would never stop")

    def _text(self, conversation: Conversation, messages: list[Message], add_generation_prompt: bool = False) -> str:
        try:
            text: str = self._compiled.render(
                messages=messages,
                tools=conversation.tools,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **self._arguments(conversation),
            )
            text.encode()  # half of a surrogate pair is valid JSON, but no text
        except _TEMPLATE_ERRORS as error:
            raise RowError(f"the chat template refuses the conversation: {error}") from None
        return text

    def _arguments(self, conversation: Conversation) -> dict[str, Any]:
        return {**self._context, **conversation.template_arguments}

    def _find_end_of_turn(self) -> str | None:
        """What follows an answer in the text, up to the line break: `<|im_end|>`, `</s>`, `<|eot_id|>`, …"""
        probe = "shardtune-probe-answer"
        messages = [{"role": "user", "content": "Question?"}, {"role": "assistant", "content": probe}]
        try:
            text = self._text(Conversation(messages), messages)
        except RowError:
            return None  # a template that wants more than two plain messages
        after = text.rpartition(probe)[2].split("\n")[0].strip()
        return after or None


def _frozen_strftime(today: date) -> Callable[[str], str]:
    return datetime.combine(today, time(0)).strftime


def _merge_touching(spans: list[Span]) -> list[Span]:
    merged: list[Span] = []
    for start, end in spans:
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        elif end > start:
            merged.append((start, end))
    return merged
