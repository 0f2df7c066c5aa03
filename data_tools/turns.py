"""Where the model's turns lie in a rendered conversation.

Spans come from the template's own `{% generation %}` tags where it has them, else from the difference between the text
rendered up to a turn and the text rendered with it. Never from searching for known strings of templates.

    <|im_start|>assistant\\n<think>\\n\\n</think>\\n\\nHello!<|im_end|>\\n
    [ header: what asks for the turn  ][ empty block ][ learnt          ]
"""

import re
from dataclasses import dataclass
from functools import cached_property

from data_tools.errors import RowError
from data_tools.formats import Conversation
from data_tools.lost import check_calls
from data_tools.messages import Message
from data_tools.sandbox import CharSpan
from data_tools.template import JinjaTemplate, common_prefix

_EMPTY_BLOCK = re.compile(r"\s*(<(?P<name>[^<>/\s]+)>\s*</(?P=name)>)\s*")


class RewriteError(RowError):
    """The template renders an earlier turn differently once later ones follow."""

    def __init__(self, what: str) -> None:
        """Say `what` becomes of which message."""
        super().__init__(
            f"the chat template rewrites earlier turns (Qwen3's drops their think blocks, even empty ones): {what}"
        )


class InARowError(RewriteError):
    """It does so because another answer follows at once."""

    def __init__(self, second: int) -> None:
        """Say which messages these are, by the number of the second."""
        RowError.__init__(
            self,
            f"two assistant messages in a row ({second - 1} and {second}): the chat template rewrites the first "
            f"because of the second; join them into one",
        )


@dataclass(slots=True)  # not frozen: several are made for every row, and freezing makes that three times slower
class Turn:
    """What the model writes: one assistant message, or several between which nobody else speaks."""

    message: int | None
    """Its number; None where generation tags do not tell messages apart."""
    span: CharSpan


@dataclass(frozen=True)
class TurnFinder:
    """Finds turns and what of them is learnt.

    Args:
        template: renders the conversations.
        with_headers: whether what the template writes before an answer belongs to the turn.
        with_end: whether the token that ends the turn belongs to it.
        ends: texts that end a turn: the template's end of a turn and the tokenizer's control tokens.
    """

    template: JinjaTemplate
    with_headers: bool
    with_end: bool
    ends: tuple[str, ...]

    def find(self, conversation: Conversation, wanted: list[int]) -> tuple[str, list[Turn]]:
        """The whole text, and the turns of the messages `wanted`, ascending.

        Raises:
            RewriteError: a wanted turn has no fixed place.
            RowError: the template refuses the conversation, or loses what it is given.
        """
        if self.template.has_generation_tags:
            text, turns = self._by_tags(conversation, wanted)
        else:
            text, turns = self._by_prefixes(conversation, wanted)
        apart = not turns or turns[0].message is not None
        for turn in turns if apart else turns[:1]:
            self._prove(text, turn, conversation, [turn.message] if turn.message is not None else wanted)
        if self.with_end and turns and not self._end_length(text[slice(*turns[-1].span)].rstrip()):
            end = f" ({self.template.end_of_turn})" if self.template.end_of_turn else ""
            raise RowError(
                f"the end of the last turn{end} is not learnt, a model would never stop; use a template that writes "
                f"it, or say data.train_end_of_turn=false"
            )
        return text, [turn if self.with_end else self._without_end(text, turn) for turn in turns]

    def _by_tags(self, conversation: Conversation, wanted: list[int]) -> tuple[str, list[Turn]]:
        text, spans = self.template.tagged_text(conversation)
        spans = [span for span in spans if span[1] > span[0]]
        speakers = [number for number, message in enumerate(conversation.messages) if message["role"] == "assistant"]
        if len(spans) == len(speakers):
            chosen = set(wanted)
            turns = [Turn(number, span) for number, span in zip(speakers, spans, strict=True) if number in chosen]
        elif wanted == speakers:
            turns = [Turn(None, span) for span in spans]
        else:
            raise RowError("the template's generation tags do not tell the answers apart, and not all are learnt")
        if self.with_headers:
            return text, turns
        headers = _Headers(self.template, conversation)
        return text, [Turn(turn.message, headers.cut(text, turn)) for turn in turns]

    def _by_prefixes(self, conversation: Conversation, wanted: list[int]) -> tuple[str, list[Turn]]:
        """A turn is what rendering one message more adds to the text that asks for it (proved for every turn)."""
        messages = conversation.messages
        text = self.template.text(conversation, messages)
        turns = []
        for number in wanted:
            start, header_end = self._asked(text, conversation, number)
            is_last = number == len(messages) - 1
            through = text if is_last else self._shared(text, self.template.text(conversation, messages[: number + 1]))
            if start is None and messages[number - 1]["role"] == "assistant":
                raise InARowError(number)
            if start is None or through is None:
                raise RewriteError(
                    f"message {number} no longer reads as the model had to write it once the chat goes on"
                )
            turn = Turn(number, (start, self._end(through)))
            if not self.with_headers:
                body_end = self._without_end(text, turn).span[1]
                answer = _answer_start(text, turn.span, max(start, header_end), body_end, messages[number])
                turn = Turn(number, (answer, turn.span[1]))
            turns.append(turn)
        return text, turns

    def _asked(self, text: str, conversation: Conversation, number: int) -> tuple[int | None, int]:
        """Where the turn of a message begins with its header, and where the header ends."""
        if number == 0:
            return self._first_turn(text, conversation.messages[0])
        earlier = conversation.messages[:number]
        before = self._shared(text, self.template.text(conversation, earlier))
        if self.with_headers:
            return (None, 0) if before is None else (len(before), len(before))
        asking = self.template.text(conversation, earlier, add_generation_prompt=True)
        if text.startswith(asking):
            return len(asking if before is None else before), len(asking)
        if before is None:
            return None, 0
        if self.template.header and text.startswith(self.template.header, len(before)):
            return len(before), len(before) + len(self.template.header)
        return len(before), len(common_prefix(asking, text))

    def _first_turn(self, text: str, message: Message) -> tuple[int, int]:
        """Likewise for an answer to nothing: templates need not say what asks for it, so it is looked for."""
        header, content = self.template.header, str(message.get("content", "")).strip()
        place = text.find(content) if content else len(text)
        if header and 0 <= (start := text.find(header)) <= place:
            return start, start + len(header)
        if not content or place < 0:
            raise RowError("the chat template does not show where the first message, an assistant's, begins")
        return place, place

    def _shared(self, text: str, earlier: str) -> str | None:
        """The rendering of the first messages as it stands in the whole text; None where it does not.

        Some templates close a text by one more control token, which is not there when the conversation goes on.
        """
        if text.startswith(earlier):
            return earlier
        for end in self.ends:
            open_end = earlier.removesuffix(end)
            if open_end != earlier and text.startswith(open_end) and self._end_length(open_end.rstrip()):
                return open_end
        return None

    def _end(self, through: str) -> int:
        """Cut the line break that templates write after the end of a turn: the model never has to say it."""
        stripped = through.rstrip()
        return len(stripped) if self._end_length(stripped) else len(through)

    def _without_end(self, text: str, turn: Turn) -> Turn:
        """Take off what ends the turn, down to what the message says."""
        start, _ = turn.span
        return Turn(turn.message, (start, start + len(self._body(text[slice(*turn.span)]))))

    def _body(self, turn: str) -> str:
        """The text of a turn without what ends it."""
        body = turn.rstrip()
        while length := self._end_length(body):
            body = body[:-length].rstrip()
        return body

    def _end_length(self, text: str) -> int:
        """The length of the longest end that a text ends with; 0: with none."""
        for length in self._lengths_of.get(text[-self._shortest :], ()):
            if text[-length:] in self._end_set:
                return length
        return 0

    @cached_property
    def _end_set(self) -> set[str]:
        return set(self.ends)

    @cached_property
    def _shortest(self) -> int:
        return min(map(len, self.ends), default=1)

    @cached_property
    def _lengths_of(self) -> dict[str, list[int]]:
        """The last letters of ends → the lengths of these ends, longest first: there may be hundreds of ends."""
        found: dict[str, list[int]] = {}
        for length, tail in sorted({(len(end), end[-self._shortest :]) for end in self.ends}, reverse=True):
            found.setdefault(tail, []).append(length)
        return found

    def _prove(self, text: str, turn: Turn, conversation: Conversation, said: list[int]) -> None:
        """What the messages `said` say is in the turn's text, or the turn was rewritten, or lost."""
        learnt = text[slice(*turn.span)]
        body = self._body(learnt)
        for number in said:
            message = conversation.messages[number]
            check_calls(learnt if turn.message is not None else text, message, number)
            for part, what in _said(message):
                place = text if turn.message is None else learnt if self._end_length(part) else body
                if part not in place:
                    reason = f"the text that is learnt does not contain the {what} of message {number}"
                    later = any(message["role"] == "user" for message in conversation.messages[number + 1 :])
                    raise RewriteError(f"once the chat goes on, {reason}") if later else RowError(reason)


def _said(message: Message) -> list[tuple[str, str]]:
    """What has to be found in the text of a turn."""
    parts = [(str(message.get("content", "")).strip(), "answer")]
    if "reasoning_content" in message:
        parts.append((str(message["reasoning_content"]).strip(), "reasoning"))
    for call in message.get("tool_calls", []):
        parts.append((str(call["function"].get("name", "")), "tool call"))
    return parts


class _Headers:
    """The text that asks for a turn: found by rendering with and without it, once where all turns have the same."""

    def __init__(self, template: JinjaTemplate, conversation: Conversation) -> None:
        self._template = template
        self._conversation = conversation
        self._last: str | None = None

    def cut(self, text: str, turn: Turn) -> CharSpan:
        """The span without its header."""
        if turn.message is None:
            return _after(self._template.header, text, turn.span[0]), turn.span[1]
        message = self._conversation.messages[turn.message]
        if self._last is not None:
            after = _after(self._last, text, turn.span[0])
            if _starts_with_answer(text[after : turn.span[1]], message):
                return after, turn.span[1]
        self._last = self._header_of(turn.message)
        after = _after(self._last, text, turn.span[0])
        return _answer_start(text, turn.span, after, turn.span[1], message), turn.span[1]

    def _header_of(self, message: int) -> str:
        if message == 0:
            return self._template.header
        messages = self._conversation.messages[:message]
        asking = self._template.text(self._conversation, messages, add_generation_prompt=True)
        return asking.removeprefix(self._template.text(self._conversation, messages))


def _after(header: str, text: str, start: int) -> int:
    """The end of a header that begins at or before `start` and reaches it; else `start`."""
    found = text.rfind(header, max(0, start - len(header)), start + len(header))
    return found + len(header) if header and 0 <= found <= start else start


def _starts_with_answer(learnt: str, message: Message) -> bool:
    content = message.get("content", "")
    return bool(content) and "reasoning_content" not in message and learnt.startswith(content)


def _answer_start(text: str, turn: CharSpan, header_end: int, body_end: int, message: Message) -> int:
    """Step over an empty block that the template inserted; step back where the header overlaps the answer itself."""
    content = str(message.get("content", "")).strip()
    for end in (body_end, turn[1]):  # the answer may itself end with a control token
        if content in text[header_end:end]:
            break
        start = text.rfind(content, turn[0], end)
        if start >= 0 and start + len(content) >= header_end:  # the header does not say it by itself
            return start
    else:
        return turn[0]  # nowhere: the proof will say so
    if (block := _EMPTY_BLOCK.match(text, header_end)) and not content.startswith(block[1]):
        return block.end()
    return header_end
