"""A conversation as the model sees it."""

from dataclasses import dataclass

ByteSpan = tuple[int, int]
"""Bytes [start, end) of a UTF-8 text."""


@dataclass(slots=True)  # not frozen: one is made for every row, and freezing makes that three times slower
class RenderedChat:
    """The text of one document, and the parts of it that the model learns, in order and apart.

    text   <|im_start|>user\\nHi<|im_end|>\\n<|im_start|>assistant\\nHello!<|im_end|>\\n
    spans                                                          [Hello!<|im_end|>]
    """

    text: bytes
    """UTF-8"""
    spans: list[ByteSpan]
    weights: list[float] | None = None
    """How much each span is learnt; None: all alike."""
    literals: tuple[ByteSpan, ...] = ()
    """Where the text only looks like a control token: it is encoded as any other text."""
    rewritten: bool = False
    """Whether the template rewrites earlier turns of the conversation, and this document is what can be learnt."""

    def learnt(self) -> list[str]:
        """The texts of the spans."""
        return [self.text[start:end].decode() for start, end in self.spans]

    @property
    def size(self) -> int:
        """Bytes of the text."""
        return len(self.text)
