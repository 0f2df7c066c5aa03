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
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, NamedTuple

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


class Facts(NamedTuple):
    """Everything but the messages of a conversation."""

    tools: list[Any] | None = None
    template_arguments: dict[str, Any] | None = None
    weights: list[float] | None = None
    completion_from: int | None = None


NO_FACTS = Facts()


def exact_key(facts: Facts) -> bytes | None:
    """Tells facts apart as exactly as templates can: 1, 1.0 and true are three things; None: there are none.

    Raises:
        ValueError: they are more than JSON can say.
    """
    return None if facts == NO_FACTS else marshal.dumps(tuple(facts), 2)


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

    parts: list[str]
    """The constant texts, between which contents go."""
    messages: list[int]
    """Of which message the content after each part (but the last) is."""
    strips: bool
    """Whether the template strips contents."""
    border_parts: list[int]
    """For each border of a span (start and end in turns), the part in which it lies …"""
    border_bytes: list[int]
    """… and the byte of that part."""
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
        self.parts = [text[a:b] for a, b in zip(edges[::2], edges[1::2], strict=True)]
        self.messages = [slot.message for slot in self._slots]
        self.strips = any(slot.strips for slot in self._slots)
        byte_edges = [len(text[:edge].encode()) for edge in edges]
        places = [self._place(border, byte_edges) for span in marked.spans for border in span]
        self.border_parts, self.border_bytes = [part for part, _ in places], [byte for _, byte in places]
        self.weights = marked.weights
        # What `FilledChat` needs: the text with `%s` for contents, and the constant bytes before each border.
        self.form = "%s".join(part.replace("%", "%%") for part in self.parts)
        part_starts = list(accumulate((len(part.encode()) for part in self.parts), initial=0))
        self.borders = [part_starts[part] + byte for part, byte in places]
        self._in_order = self.messages == list(range(len(self._slots)))

    def _place(self, position: int, edges: list[int]) -> tuple[int, int]:
        """The constant part in which a position lies, and the byte of it."""
        part = sum(end <= position for end in edges[2::2][: len(self._slots)])
        if edges[2 * part + 1] < position:
            raise ValueError("inside a content")
        return part, position - edges[2 * part]

    def fill(self, contents: list[str]) -> "FilledChat":
        """A conversation with these contents."""
        if len(contents) != len(self.messages) or not self._in_order:
            contents = [contents[message] for message in self.messages]
        if self.strips:
            contents = [slot.strip(content) for slot, content in zip(self._slots, contents, strict=True)]
        return FilledChat(self, contents)


@dataclass(slots=True)
class FilledChat:
    """A conversation between the constant parts of its template: `texts.py` finds the borders of many at once."""

    skeleton: Skeleton
    contents: list[str]

    def text(self) -> str:
        """The whole text."""
        return self.skeleton.form % tuple(self.contents)

    def rendered(self) -> RenderedChat:
        """The text and its spans."""
        ends = list(accumulate((len(content.encode()) for content in self.contents), initial=0))
        places = zip(self.skeleton.borders, self.skeleton.border_parts, strict=True)
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

    def of(self, roles: tuple[str, ...], head: str | None, facts: Facts) -> Skeleton | None:
        """The skeleton for conversations of such roles; None where the slow way has to be taken.

        Args:
            roles: of the messages.
            head: the content of the first, if it is the system's.
            facts: what else there is to a conversation.
        """
        try:
            key = (roles, head, exact_key(facts))
            return self._known[key]
        except ValueError:
            return None  # facts that are more than JSON can say
        except KeyError:
            if len(self._known) == _MOST:
                return None
            self._known[key] = self._probe(roles, head, facts)
            return self._known[key]

    def _probe(self, roles: tuple[str, ...], head: str | None, facts: Facts) -> Skeleton | None:
        messages: list[Message] = [
            {"role": role, "content": f"{_BEFORE}{_SPACE}shardtune-slot-{number}-{_SPACE}{_AFTER}"}
            for number, role in enumerate(roles)
        ]
        if any(_PASSES_FOR_SLOT.search(text) for text in texts_in((head, facts.tools, facts.template_arguments))):
            return None
        if head is not None:
            messages[0] = {"role": "system", "content": head}
        try:
            return Skeleton(
                self._render(Conversation(messages, facts.tools, facts.template_arguments or {}, *facts[2:]))
            )
        except (RowError, ValueError):
            return None  # the slow way says what is wrong, row by row
