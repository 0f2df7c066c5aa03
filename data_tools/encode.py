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
from data_tools.errors import UserError


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
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise UserError(f"{tokenizer.name_or_path}: no tokenizer.json; save the tokenizer in its fast form first")
        self._tokenizer = Tokenizer.from_str(backend.to_str())
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        # A byte-level post-processor trims spaces off the offsets, which would move the borders of spans.
        self._tokenizer.post_processor = processors.Sequence([])

    def encode(self, chats: Sequence[RenderedChat]) -> list[Document]:
        """Encode rendered chats; a token is trained when its first character is inside a trained span."""
        encodings = self._tokenizer.encode_batch([chat.text for chat in chats], add_special_tokens=False)
        return [
            Document(
                np.array(encoding.ids, dtype=np.int32),
                _mask_runs(np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2)[:, 0], chat.spans),
            )
            for encoding, chat in zip(encodings, chats, strict=True)
        ]


def _mask_runs(token_starts: NDArray[np.int64], spans: Sequence[Span]) -> NDArray[np.int32]:
    """Borders of character spans → borders between tokens → run lengths. `token_starts` ascends."""
    borders = np.searchsorted(token_starts, np.array(spans, dtype=np.int64).reshape(-1))
    runs = np.diff(np.concatenate([[0], borders, [len(token_starts)]])).astype(np.int32)
    return runs[:-1] if len(runs) > 1 and runs[-1] == 0 else runs
