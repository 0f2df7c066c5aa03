"""The texts of many documents, end to end, and the borders of what is learnt of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data_tools.chat_text import RenderedChat
from data_tools.columnar import PlainChats
from data_tools.skeleton import FilledChat, Skeleton
from data_tools.tokens import Tokens

Item = RenderedChat | FilledChat | Tokens
"""What can become a document."""


@dataclass(frozen=True)
class Texts:
    """The texts of a batch of documents and the borders of their spans."""

    data: NDArray[np.uint8]
    """UTF-8, end to end."""
    offsets: NDArray[np.int64]
    """[documents + 1] where each begins in `data`."""
    borders: NDArray[np.int64]
    """Bytes of `data`: the start and the end of each span in turns."""
    border_counts: NDArray[np.int64]
    """[documents]"""
    weights: list[list[float] | None]
    """[documents] of the spans."""

    def __len__(self) -> int:
        return len(self.weights)

    def text(self, document: int) -> bytes:
        """The text of one."""
        return self.data[self.offsets[document] : self.offsets[document + 1]].tobytes()

    def rendered(self, document: int) -> RenderedChat:
        """One of them, alone."""
        first = int(np.sum(self.border_counts[:document]))
        borders = self.borders[first : first + self.border_counts[document]] - self.offsets[document]
        spans = [(int(start), int(end)) for start, end in borders.reshape(-1, 2)]
        return RenderedChat(self.text(document), spans, self.weights[document])


def texts_of(items: Sequence[Item]) -> Texts:
    """The texts of some items; of tokens, nothing.

    A border is so many constant bytes after the start of its text, and so many contents.
    """
    texts, weights = list[bytes](), list[list[float] | None]()
    constants, befores, border_counts = list[int](), list[int](), list[int]()
    content_lengths, content_counts = list[int](), list[int]()
    for item in items:
        if isinstance(item, FilledChat):
            skeleton, contents = item.skeleton, item.contents
            text = skeleton.form % tuple(contents)
            encoded = text.encode()
            ascii_only = len(encoded) == len(text)
            content_lengths += map(len, contents if ascii_only else [content.encode() for content in contents])
            content_counts.append(len(contents))
            constants += skeleton.borders
            befores += skeleton.border_parts
            border_counts.append(len(skeleton.borders))
            weights.append(skeleton.weights)
            texts.append(encoded)
            continue
        content_counts.append(0)
        texts.append(b"" if isinstance(item, Tokens) else item.text)
        weights.append(None if isinstance(item, Tokens) else item.weights)
        borders = [] if isinstance(item, Tokens) else [border for span in item.spans for border in span]
        constants += borders
        befores += [0] * len(borders)
        border_counts.append(len(borders))
    offsets, content_ends = ends(list(map(len, texts))), ends(content_lengths)
    counts = np.array(border_counts, np.int64)
    first_content = ends(content_counts)[:-1]
    moved = np.repeat(offsets[:-1] - content_ends[first_content], counts)
    in_contents = content_ends[np.repeat(first_content, counts) + np.array(befores, np.int64)]
    data = np.frombuffer(b"".join(texts), np.uint8)
    return Texts(data, offsets, moved + in_contents + np.array(constants, np.int64), counts, weights)


def filled(chats: PlainChats, kinds: Sequence[Skeleton], which: NDArray[np.int64]) -> Texts:
    """The texts of chats in columns, without an object for any of them.

    The constant parts and the contents are one array of texts, of which each chat takes its own in turns:

        parts     <|im_start|>user\\n  <|im_end|>\\n<|im_start|>assistant\\n  <|im_end|>\\n
        contents  Hi  Hello!  Who?  Me.
        taken     0 3 1 4 2   0 5 1 6 2

    Args:
        chats: the chats.
        kinds: their skeletons.
        which: [chats] the number of each chat's skeleton.
    """
    constants = [part for kind in kinds for part in kind.parts]
    first_constants = ends([len(kind.parts) for kind in kinds]).tolist()
    patterns = [_pattern(kind, first) for kind, first in zip(kinds, first_constants, strict=False)]
    taken, starts = _each(patterns, which)
    first_content = np.repeat(chats.starts[:-1] + len(constants), np.diff(starts))
    taken = np.where(taken < 0, first_content - 1 - taken, taken)
    pieces = pa.concat_arrays([pa.array(constants, pa.large_string()), chats.contents]).take(pa.array(taken))
    _, places, data = pieces.buffers()
    offsets = np.frombuffer(places, np.int64)[: len(taken) + 1]
    part, border_starts = _each([np.array(kind.border_parts, np.int64) for kind in kinds], which)
    byte, _ = _each([np.array(kind.border_bytes, np.int64) for kind in kinds], which)
    counts = np.diff(border_starts)
    borders = offsets[np.repeat(starts[:-1], counts) + 2 * part] + byte
    weights = [kinds[kind].weights for kind in which.tolist()]
    return Texts(np.frombuffer(data, np.uint8), offsets[starts], borders, counts, weights)


def _pattern(kind: Skeleton, first_constant: int) -> NDArray[np.int64]:
    """What a chat takes in turns: its constants, and the contents of its messages, of which the first is -1."""
    pattern = np.empty(2 * len(kind.messages) + 1, np.int64)
    pattern[::2] = np.arange(first_constant, first_constant + len(kind.parts))
    pattern[1::2] = [-1 - message for message in kind.messages]
    return pattern


def _each(kinds: list[NDArray[np.int64]], which: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The numbers of the kind of each, end to end, and where each begins."""
    firsts = ends([len(kind) for kind in kinds])
    starts = ends(np.diff(firsts)[which])
    moved = np.repeat(firsts[which] - starts[:-1], np.diff(starts))
    return np.concatenate(kinds)[np.arange(starts[-1]) + moved], starts


def ends(lengths: Sequence[int] | NDArray[np.integer[Any]]) -> NDArray[np.int64]:
    """[lengths + 1] 0, and where each ends when they are put end to end."""
    result = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=result[1:])
    return result
