"""Text and trained spans → token ids and mask runs, exactly as the Hugging Face tokenizer encodes the whole text.

A mask is stored as alternating run lengths, untrained first:

    ids    [a b c d e f g]
    mask   [. . . x x x .]      mask_runs  [3 3 1]
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, processors
from transformers import PreTrainedTokenizerBase

from data_tools.chat import RenderedChat, Span


@dataclass(frozen=True)
class Document:
    """The tokens of one conversation."""

    input_ids: NDArray[np.int32]
    mask_runs: NDArray[np.int32]

    @property
    def trained(self) -> int:
        """Labels that this document gives: its trained tokens, less a trained first token, which nothing predicts."""
        first_is_trained = len(self.mask_runs) > 1 and self.mask_runs[0] == 0
        return int(self.mask_runs[1::2].sum()) - int(first_is_trained)


class Encoder:
    """The tokenizer's own fast encoding with character offsets; never truncates, never adds a token."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        # A byte-level post-processor trims spaces off the offsets, which would move the borders of spans.
        self._tokenizer.post_processor = processors.Sequence([])

    def encode(self, chats: Sequence[RenderedChat]) -> list[Document]:
        """Encode rendered chats; every token that holds a character of a trained span is trained."""
        encodings = self._tokenizer.encode_batch([chat.text for chat in chats], add_special_tokens=False)
        return [
            Document(
                np.array(encoding.ids, dtype=np.int32),
                _mask_runs(np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2), chat.spans),
            )
            for encoding, chat in zip(encodings, chats, strict=True)
        ]


def _mask_runs(offsets: NDArray[np.int64], spans: Sequence[Span]) -> NDArray[np.int32]:
    """Character spans → run lengths of tokens.

    A token may begin before its span (" Yes" of "ASSISTANT: Yes"): it is the only one that says the answer's first
    word, so it is trained, as transformers does.

    Args:
        offsets: [tokens, 2], first character and the one after the last; both columns ascend.
        spans: of characters, ascending and apart.
    """
    borders = np.array(spans, dtype=np.int64).reshape(-1, 2)
    first = np.searchsorted(offsets[:, 1], borders[:, 0], side="right")
    after_last = np.searchsorted(offsets[:, 0], borders[:, 1], side="left")
    token_borders = np.maximum.accumulate(np.stack([first, after_last], axis=1).reshape(-1))
    runs = np.diff(np.concatenate([[0], token_borders, [len(offsets)]])).astype(np.int32)
    return runs[:-1] if len(runs) > 1 and runs[-1] == 0 else runs
