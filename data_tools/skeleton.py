"""The fast way through a template: what it writes around contents is found once for each sequence of roles.

A template whose contents only flow out (`flow.py` proves it) writes the same text around the contents of every
conversation with the same roles (and tools, arguments, system message at the head). One probe with marked contents
gives these parts and the places of the spans:

    user, assistant   →   [<|im_start|>user\\n] 0 [<|im_end|>\\n<|im_start|>assistant\\n] 1 [<|im_end|>\\n]
    spans                                                                            from 1 to 10 bytes after it
"""

import marshal
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import accumulate

from data_tools.chat_text import RenderedChat
from data_tools.errors import RowError
from data_tools.flow import contents_only_flow_out
from data_tools.formats import Conversation
from data_tools.messages import Message, texts_in
from data_tools.template import JinjaTemplate

_SPACE = "\u2003"  # white space that no template writes: it shows whether contents are stripped
_BEFORE, _AFTER = "\n" * 32, "\n" * 1024  # likewise for line breaks, also between two contents that touch
_SLOT = re.compile(rf"({_SPACE}?)shardtune-slot-(\d+)-({_SPACE}?)")
_PASSES_FOR_SLOT = re.compile(f"{_SPACE}|{_BEFORE}|shardtune-slot-")
_MOST = 4096

Key = tuple[tuple[str, ...], str | None, bytes | None]
"""What conversations of one skeleton share: roles, the system message at the head, and everything but messages."""


@dataclass(frozen=True)
class _Slot:
    """Where a content goes, and what of its edges the template strips."""

    message: int
    start: int
    end: int
    strips: tuple[Callable[[str], str], ...]

    @classmethod
    def found(cls, match: re.Match[str]) -> "_Slot":
        start, end = match.span()
        before = match.string[max(0, start - 2 * len(_AFTER)) : start]
        after = match.string[end : end + len(_AFTER)]
        strips: list[Callable[[str], str]] = []
        if not match[1]:
            strips.append(str.lstrip)
        elif (len(before) - len(before.rstrip("\n"))) % len(_AFTER) < len(_BEFORE):
            strips.append(lambda content: content.lstrip("\n"))
        else:
            start -= len(_BEFORE)
        if not match[3]:
            strips.append(str.rstrip)
        elif after != _AFTER:
            strips.append(lambda content: content.rstrip("\n"))
        else:
            end += len(_AFTER)
        return cls(int(match[2]), start, end, tuple(strips))

    def strip(self, content: str) -> str:
        for strip in self.strips:
            content = strip(content)
        return content


class Skeleton:
    """The constant parts of a text, and the spans among them."""

    form: str
    """The constant parts, with `%s` where contents go."""
    borders: list[int]
    """For each border of a span (start and end in turns), the bytes of constant parts before it …"""
    contents_before: list[int]
    """… and how many contents come before it."""
    weights: list[float] | None
    """Of the spans."""

    def __init__(self, marked: RenderedChat) -> None:
        """Take apart the rendering of a probe.

        Raises:
            ValueError: a span begins or ends inside a content.
        """
        text = marked.text.decode()
        self._slots = [_Slot.found(match) for match in _SLOT.finditer(text)]
        edges = [0, *(edge for slot in self._slots for edge in (slot.start, slot.end)), len(text)]
        parts = [text[a:b] for a, b in zip(edges[::2], edges[1::2], strict=True)]
        self.form = "%s".join(part.replace("%", "%%") for part in parts)
        part_starts = list(accumulate((len(part.encode()) for part in parts), initial=0))
        byte_edges = [len(text[:edge].encode()) for edge in edges]
        places = [self._place(border, byte_edges) for span in marked.spans for border in span]
        self.borders = [part_starts[part] + offset for part, offset in places]
        self.contents_before = [part for part, _ in places]
        self.weights = marked.weights
        self._in_order = [slot.message for slot in self._slots] == list(range(len(self._slots)))
        self._messages = [slot.message for slot in self._slots]
        self._strips = any(slot.strips for slot in self._slots)

    def _place(self, position: int, edges: list[int]) -> tuple[int, int]:
        """The constant part in which a position lies, and the byte of it."""
        part = sum(end <= position for end in edges[2::2][: len(self._slots)])
        if edges[2 * part + 1] < position:
            raise ValueError("inside a content")
        return part, position - edges[2 * part]

    def fill(self, contents: list[str]) -> "FilledChat":
        """A conversation with these contents."""
        if len(contents) != len(self._messages) or not self._in_order:
            contents = [contents[message] for message in self._messages]
        if self._strips:
            contents = [slot.strip(content) for slot, content in zip(self._slots, contents, strict=True)]
        return FilledChat(self, contents)


@dataclass(slots=True)
class FilledChat:
    """A conversation between the constant parts of its template: `encode.py` finds the borders of many at once."""

    skeleton: Skeleton
    contents: list[str]

    def text(self) -> str:
        """The whole text."""
        return self.skeleton.form % tuple(self.contents)

    def rendered(self) -> RenderedChat:
        """The text and its spans."""
        ends = list(accumulate((len(content.encode()) for content in self.contents), initial=0))
        places = zip(self.skeleton.borders, self.skeleton.contents_before, strict=True)
        borders = [constant + ends[contents] for constant, contents in places]
        spans = list(zip(borders[::2], borders[1::2], strict=True))
        return RenderedChat(self.text().encode(), spans, self.skeleton.weights)

    @property
    def size(self) -> int:
        """Characters of the contents."""
        return sum(map(len, self.contents))


class Skeletons:
    """The skeletons of a template, found as role sequences come up.

    Args:
        template: the template.
        render: renders one conversation the slow and general way.
    """

    def __init__(self, template: JinjaTemplate, render: Callable[[Conversation], RenderedChat]) -> None:
        self.proved = contents_only_flow_out(template.syntax_tree())
        self._render = render
        self._known: dict[Key, Skeleton | None] = {}

    def of(self, conversation: Conversation, roles: tuple[str, ...]) -> Skeleton | None:
        """The skeleton for a conversation of roles and contents; None where the slow way has to be taken."""
        head = conversation.messages[0]["content"] if roles[0] == "system" else None
        try:
            key = (roles, head, _besides_messages(conversation))
        except ValueError:
            return None
        if key not in self._known:
            if len(self._known) == _MOST:
                return None
            self._known[key] = self._probe(conversation, roles, head)
        return self._known[key]

    def _probe(self, conversation: Conversation, roles: tuple[str, ...], head: str | None) -> Skeleton | None:
        messages: list[Message] = [
            {"role": role, "content": f"{_BEFORE}{_SPACE}shardtune-slot-{number}-{_SPACE}{_AFTER}"}
            for number, role in enumerate(roles)
        ]
        others = (head, conversation.tools, conversation.template_arguments)
        if any(_PASSES_FOR_SLOT.search(text) for text in texts_in(others)):
            return None
        if head is not None:
            messages[0] = {"role": "system", "content": head}
        try:
            return Skeleton(self._render(replace(conversation, messages=messages)))
        except (RowError, ValueError):
            return None  # the slow way says what is wrong, row by row


def _besides_messages(conversation: Conversation) -> bytes | None:
    """All other facts, told apart as exactly as templates can (1, 1.0 and true are three things).

    Raises:
        ValueError: they are more than JSON can say.
    """
    facts = (
        conversation.tools,
        conversation.template_arguments or None,
        conversation.weights,
        conversation.completion_from,
    )
    return None if facts == _NOTHING_ELSE else marshal.dumps(facts, 2)


_NOTHING_ELSE = (None, None, None, None)
