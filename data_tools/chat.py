"""Conversation → text and the spans of it that the model learns, side by side so that they cannot drift."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_tools.chat_text import ByteSpan, RenderedChat
from data_tools.columnar import PlainChats
from data_tools.config import DataConfig
from data_tools.errors import RowError, UserError
from data_tools.formats import Conversation
from data_tools.literals import ControlTokens, without_marks
from data_tools.lost import check_messages, check_tool_form, check_tools
from data_tools.messages import Message, is_blank
from data_tools.sandbox import CharSpan
from data_tools.skeleton import NO_FACTS, Facts, FilledChat, Skeleton, Skeletons
from data_tools.template import JinjaTemplate
from data_tools.turns import InARowError, RewriteError, TurnFinder


@dataclass(frozen=True)
class Learning:
    """What of a conversation is learnt; the settings of the same names in `data`."""

    train_on: str = "assistant"
    train_end_of_turn: bool = True
    train_headers: bool = False
    on_rewrite: str = "error"
    control_tokens: str = "keep"

    @classmethod
    def of(cls, data: DataConfig) -> "Learning":
        """Collect them from the `data` section."""
        return cls(data.train_on, data.train_end_of_turn, data.train_headers, data.on_rewrite, data.control_tokens)


class ChatTemplate:
    """A tokenizer's chat template with the date frozen.

    Args:
        source: the Jinja text.
        special_tokens: `bos_token`, `eos_token`, … as the tokenizer hands them to its template.
        today: what `strftime_now` answers.
        learning: what of a conversation is learnt.
        control_tokens: texts that the tokenizer reads as one special token.
    """

    def __init__(
        self,
        source: str,
        special_tokens: dict[str, Any],
        today: date,
        learning: Learning = Learning(),
        control_tokens: Sequence[str] = (),
    ) -> None:
        self.learning = learning
        self.template = JinjaTemplate(source, special_tokens, today)
        self.end_of_turn = self.template.end_of_turn
        named = [token for token in special_tokens.values() if isinstance(token, str)]
        ends = {*control_tokens, *named, self.end_of_turn or ""} - {""}
        self._finder = TurnFinder(
            self.template, learning.train_headers, learning.train_end_of_turn, tuple(sorted(ends))
        )
        guards = bool(control_tokens) and learning.control_tokens != "keep"
        self._control = ControlTokens(control_tokens) if guards else None
        self._skeletons = Skeletons(self.template, self._render_whole)

    def render(self, conversation: Conversation) -> list[RenderedChat]:
        """Render a conversation and find what the model learns of it; several documents for `split_turns`.

        Raises:
            RowError: the template refuses the conversation, rewrites earlier turns, or loses an answer.
        """
        return [chat.rendered() if isinstance(chat, FilledChat) else chat for chat in self.chats(conversation)]

    def chats(self, conversation: Conversation) -> Sequence[RenderedChat | FilledChat]:
        """What `render` gives, but texts that a skeleton makes are left to be put together with others."""
        if conversation.parts is not None and self._skeletons.proved:
            roles, contents = conversation.parts
            tools, arguments = conversation.tools, conversation.template_arguments
            if not (self._control and self._control.are_in([contents, tools, arguments])):
                head = contents[0] if roles[0] == "system" else None
                facts = Facts(tools, arguments or None, conversation.weights, conversation.completion_from)
                if skeleton := self._skeletons.of(roles, head, facts):
                    return [skeleton.fill(contents)]
        return self.render_with_jinja(conversation)

    @property
    def fills_columns(self) -> bool:
        """Whether chats in columns have skeletons at all."""
        return self._skeletons.proved and self._control is None

    def skeletons(self, chats: PlainChats) -> tuple[list[Skeleton], NDArray[np.int64]]:
        """The skeletons of chats in columns.

        Returns:
            The skeletons, and [chats] the number of each chat's; -1 for those that have to take the way of `chats`.
        """
        groups, group_of = chats.groups()
        kinds, number_of, strips = list[Skeleton](), list[int](), list[bool]()
        for roles, head, arguments in groups:
            facts = Facts(None, arguments) if arguments else NO_FACTS
            skeleton = self._skeletons.of(roles, head, facts) if "assistant" in roles else None
            number_of.append(len(kinds) if skeleton else -1)
            strips.append(skeleton is not None and skeleton.strips)
            kinds += [skeleton] if skeleton else []
        which = np.array(number_of, np.int64)[group_of]
        which[np.array(strips, np.bool_)[group_of] & chats.any_edge()] = -1
        return kinds, which

    def render_with_jinja(self, conversation: Conversation) -> list[RenderedChat]:
        """What `render` gives, the slow and general way."""
        check_tool_form(self.template, conversation)
        conversation = self._guarded(conversation)
        try:
            return [self._render_whole(conversation)]
        except RewriteError as error:
            rewritten = error
        wanted = self._wanted(conversation)
        if self.learning.on_rewrite == "error":
            number, weight = list(wanted.items())[-1]
            try:
                self._render_last(conversation, number, weight)  # says why, where no setting helps
            except InARowError:
                raise
            except RewriteError:
                raise rewritten from None
            hint = "set data.on_rewrite=last_turn (learns the last answer only) or split_turns (a document per answer)"
            raise RowError(f"{rewritten}; {hint}")
        if self.learning.on_rewrite == "last_turn":
            wanted = dict([list(wanted.items())[-1]])
        return [self._render_last(conversation, number, weight) for number, weight in wanted.items()]

    def render_by_transformers(self, conversation: Conversation) -> list[RenderedChat]:
        """What `render` gives, the slowest way, which is that of everybody else."""
        with self.template.by_transformers():
            return self.render_with_jinja(conversation)

    def prompt(self, messages: list[Message], **arguments: Any) -> str:
        """Render messages followed by the header of the assistant's next turn.

        Raises:
            UserError: the template refuses them.
        """
        conversation = Conversation(messages, template_arguments=arguments)
        try:
            return self.template.text(conversation, messages, add_generation_prompt=True)
        except RowError as error:
            raise UserError(f"cannot ask {messages[-1]['content'][:60]!r}: {error}") from None

    def prove_prompt(self, conversation: Conversation) -> bool:
        """Whether no learnt turn begins before the messages that ask for it end, where the template lets it be seen.

        Raises:
            UserError: one does.
        """
        if self.learning.train_on == "all":
            return False
        conversation = self._guarded(conversation)
        try:
            text, turns = self._finder.find(conversation, list(self._wanted(conversation)))
            asked = [
                (turn, self.template.text(conversation, conversation.messages[: turn.message]))
                for turn in turns
                if turn.message
            ]
        except RowError:
            return False  # rewritten, or a template that refuses unfinished conversations
        for turn, before in asked:
            if text.startswith(before) and turn.span[0] < len(before):
                raise UserError(
                    f"the chat template's generation tags enclose what asks for message {turn.message}; put "
                    f"{{% generation %}} after it, or set data.train_on=all"
                )
        return True

    def _render_whole(self, conversation: Conversation) -> RenderedChat:
        """One document: the whole conversation with every wanted turn."""
        wanted = self._wanted(conversation)
        text, turns = self._finder.find(conversation, list(wanted))
        if any(turn.message is None for turn in turns) and any(weight != 1 for weight in wanted.values()):
            raise RowError(
                "the template's generation tags do not tell the answers apart, so that `weight` would be lost; "
                "leave it out, or use a template with tags around every answer"
            )
        spans = [turn.span for turn in turns]
        weights = [1.0 if turn.message is None else wanted[turn.message] for turn in turns]
        if self.learning.train_on == "all":  # the turns only had to be there, and as the model writes them
            spans, weights = [(0, len(text))], [1.0]
        check_tools(self.template, conversation, text)
        check_messages(self.template, conversation, text)
        return self._document(text, spans, None if set(weights) <= {1.0} else weights)

    def _render_last(self, conversation: Conversation, number: int, weight: float) -> RenderedChat:
        """The conversation up to one turn, and that turn learnt."""
        cut = replace(conversation, messages=conversation.messages[: number + 1])
        text, turns = self._finder.find(cut, [number])
        check_tools(self.template, cut, text)
        check_messages(self.template, cut, text)
        chat = self._document(text, [turn.span for turn in turns], None if weight == 1 else [weight] * len(turns))
        return replace(chat, rewritten=True)

    def _document(self, text: str, spans: list[CharSpan], weights: list[float] | None) -> RenderedChat:
        if self._control is None or self.learning.control_tokens == "reject":
            return _in_bytes(text, spans, weights)
        text, spans, literals = without_marks(text, spans)
        return _in_bytes(text, spans, weights, literals)

    def _wanted(self, conversation: Conversation) -> dict[int, float]:
        """The messages that are learnt, and how much.

        Raises:
            RowError: one is blank: it would teach to end at once.
        """
        messages = conversation.messages
        speakers = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
        if self.learning.train_on != "all":
            speakers = [number for number in speakers if number >= (conversation.completion_from or 0)]
        match self.learning.train_on:
            case "last_assistant":
                speakers = speakers[-1:]
            case "completion" if conversation.completion_from is None:
                asked = max((n for n, message in enumerate(messages) if message["role"] == "user"), default=-1)
                speakers = [number for number in speakers if number > asked]
            case "all" if conversation.weights:
                raise RowError("`weight` and `train` of messages need another data.train_on than all")
        weights = conversation.weights or [1.0] * len(messages)
        wanted = {number: weights[number] for number in speakers if weights[number] > 0}
        for number in wanted:
            if is_blank(messages[number]):
                raise RowError(f"the answer is empty (message {number})")
        return wanted

    def _guarded(self, conversation: Conversation) -> Conversation:
        """Find control tokens in what rows say; reject the row, or mark them so that they stay text.

        Raises:
            RowError: there is one, and `control_tokens` is `reject`.
        """
        if self._control is None:
            return conversation
        if self.learning.control_tokens == "reject":
            self._control.refuse([conversation.messages, conversation.tools, conversation.template_arguments])
            return conversation
        marked = self._control.marked
        return replace(
            conversation,
            messages=[
                {key: value if key == "role" else marked(value) for key, value in message.items()}
                for message in conversation.messages
            ],
            tools=marked(conversation.tools),
            template_arguments={key: marked(value) for key, value in conversation.template_arguments.items()},
            parts=None,
        )


_NO_UNICODE = "a message has half of a surrogate pair, which is no Unicode text"


def _in_bytes(
    text: str, spans: list[CharSpan], weights: list[float] | None, literals: Sequence[CharSpan] = ()
) -> RenderedChat:
    """Characters → UTF-8 bytes."""
    try:
        encoded = text.encode()
    except UnicodeEncodeError:
        raise RowError(_NO_UNICODE) from None
    merged, kept = _merge_touching(spans, weights)
    if len(encoded) == len(text):
        return RenderedChat(encoded, merged, kept, tuple(literals))
    return RenderedChat(encoded, _byte_spans(text, merged), kept, tuple(_byte_spans(text, literals)))


def _byte_spans(text: str, spans: Sequence[CharSpan]) -> list[ByteSpan]:
    borders = []
    position = byte = 0
    for border in (border for span in spans for border in span):
        byte += len(text[position:border].encode())
        position = border
        borders.append(byte)
    return list(zip(borders[::2], borders[1::2], strict=True))


def _merge_touching(spans: list[CharSpan], weights: list[float] | None) -> tuple[list[CharSpan], list[float] | None]:
    """Neighbours that are learnt alike become one span; empty spans go."""
    merged: list[CharSpan] = []
    kept: list[float] = []
    for (start, end), weight in zip(spans, weights or [1.0] * len(spans), strict=True):
        if merged and start <= merged[-1][1] and weight == kept[-1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        elif end > start:
            merged.append((start, end))
            kept.append(weight)
    return merged, kept if weights is not None else None
