"""Control tokens inside messages that are to stay text: marked before a template writes them, found again after it.

Say <|im_end|>!   →   Say ⟦<|im_end|>⟧!   →   <|im_start|>user\\nSay <|im_end|>!<|im_end|>\\n
literals                                                          [<|im_end|>]
"""

import re
from bisect import bisect_left
from collections.abc import Sequence
from typing import Any

from data_tools.errors import RowError
from data_tools.messages import texts_in

Span = tuple[int, int]

_OPEN, _CLOSE = "\ufdd0", "\ufdd1"  # Unicode's noncharacters: never in exchanged text
_MARK = re.compile(rf"(?P<open>{_OPEN}|\\ufdd0)|{_CLOSE}|\\ufdd1")  # as they are, and as lists and objects print them


class ControlTokens:
    """Finds control tokens in what rows say.

    Args:
        texts: what the tokenizer reads as one special token.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        self._control = re.compile("|".join(re.escape(text) for text in sorted(texts, reverse=True)))
        self._found = re.compile(f"{self._control.pattern}|{_MARK.pattern}")

    def are_in(self, value: Any) -> bool:
        """Whether any text of a value has one, or has something that passes for a mark."""
        return any(self._found.search(text) for text in texts_in(value))

    def refuse(self, value: Any) -> None:
        """Make sure that there is none.

        Raises:
            RowError: there is one.
        """
        for text in texts_in(value):
            if found := self._control.search(text):
                raise RowError(f"the text has the control token {found[0]!r}, and data.control_tokens is reject")

    def marked(self, value: Any) -> Any:
        """The value with every control token between marks.

        Raises:
            RowError: it has marks already.
        """
        if any(_MARK.search(text) for text in texts_in(value)):
            raise RowError("the text has one of Unicode's noncharacters U+FDD0 and U+FDD1, which stand for nothing")
        return self._marked(value)

    def _marked(self, value: Any) -> Any:
        match value:
            case str():
                return self._control.sub(lambda match: f"{_OPEN}{match[0]}{_CLOSE}", value)
            case dict():
                return {self._marked(key): self._marked(item) for key, item in value.items()}
            case list():
                return [self._marked(item) for item in value]
            case _:
                return value


def without_marks(text: str, spans: Sequence[Span]) -> tuple[str, list[Span], list[Span]]:
    """The text without marks, the spans in it, and what stood between marks.

    A template may have taken one of two marks away. Then nothing stands there, but the text is in two pieces all the
    same: what is left and right of it cannot become a control token together.
    """
    pieces: list[str] = []
    literals: list[Span] = []
    starts, removed = [], [0]
    position, opened = 0, -1
    for mark in _MARK.finditer(text):
        pieces.append(text[position : mark.start()])
        here = mark.start() - removed[-1]
        if mark["open"]:
            literals.append((here, here))
            opened = here
        elif opened >= 0:
            literals[-1] = (opened, here)
            opened = -1
        else:
            literals.append((here, here))
        starts.append(mark.start())
        removed.append(removed[-1] + len(mark[0]))
        position = mark.end()
    pieces.append(text[position:])
    moved = [
        (start - removed[bisect_left(starts, start)], end - removed[bisect_left(starts, end)]) for start, end in spans
    ]
    return "".join(pieces), moved, literals
