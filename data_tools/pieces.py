"""Text → ids by `sentencepiece` itself, exactly as transformers' tokenizer over the same model.

    text    Hi</s>\\nYou 🙂              control tokens are found first, and each text between them is encoded alone
    parts   Hi | </s> | \\nYou 🙂
    ids     ▁Hi   </s>   ▁ <0x0A> You ▁🙂     SentencePiece puts a space before every text
    bytes   2     4      0 1 3 5               what each token takes of the text

A token that takes nothing, like that space, belongs to what follows.
"""

import re
from collections.abc import Sequence
from itertools import chain

import numpy as np
from numpy.typing import NDArray
from sentencepiece import SentencePieceProcessor
from sentencepiece.sentencepiece_model_pb2 import ModelProto

from data_tools.texts import ends
from data_tools.tokenization_sentencepiece import SentencePieceTokenizer

Places = tuple[NDArray[np.int32], NDArray[np.int64], NDArray[np.int64]]
"""Ids, and the bytes of the text where each begins and ends."""


class PieceEncoder:
    """Encodes like a tokenizer over a SentencePiece model.

    Args:
        tokenizer: whose ids are made.
    """

    def __init__(self, tokenizer: SentencePieceTokenizer) -> None:
        self._tokenizer = tokenizer
        self._model = tokenizer.sp_model
        self._added = {token.encode(): id for token, id in tokenizer.added_tokens_encoder.items()}
        longest_first = sorted(self._added, key=len, reverse=True)
        self._control = re.compile(b"(%s)" % b"|".join(map(re.escape, longest_first)) if longest_first else b"(?!)")
        flags = {token.content.encode(): token for token in tokenizer.added_tokens_decoder.values()}
        self._strips = {text: token for text, token in flags.items() if token.lstrip or token.rstrip}
        self._lengths, self._prefix = _piece_lengths(self._model)

    @property
    def keeps_bytes(self) -> bool:
        """Whether the model leaves texts as they are, so that they are the bytes of their tokens."""
        return self._lengths is not None

    def encode(self, texts: Sequence[bytes]) -> tuple[NDArray[np.int32], NDArray[np.int64], NDArray[np.int64]]:
        """The ids of texts end to end, [texts + 1] where each text begins, and the bytes that each token takes.

        The bytes of a text that was encoded otherwise than byte by byte are fewer than those of the text: it has
        characters that are unknown, or taken for a space.
        """
        assert self._lengths is not None
        split = [self._split(text)[0] for text in texts]
        parts = list(chain.from_iterable(split))
        is_text = np.array([part not in self._added for part in parts], np.bool_)
        each = self._ids(parts)
        starts = ends(list(map(len, each)))
        ids = np.concatenate([np.empty(0, np.int32), *each])
        lengths = self._lengths[np.minimum(ids, len(self._lengths) - 1)]
        lengths[starts[:-1][~is_text]] = [len(part) for part in parts if part in self._added]
        lengths[starts[:-1][is_text]] -= self._prefix
        return ids, starts[ends(list(map(len, split)))], np.maximum(lengths, 0)

    def _ids(self, parts: list[bytes]) -> list[NDArray[np.int32]]:
        """The ids of each part."""
        texts = [part for part in parts if part not in self._added]
        encoded = iter(self._model.encode(texts, return_type="numpy", num_threads=1) if texts else [])
        added = {part: np.array([id], np.int32) for part, id in self._added.items()}
        return [added[part] if part in added else next(encoded) for part in parts]

    def encode_one(self, text: bytes, literal: bool) -> Places:
        """Encode a text by the offsets that `sentencepiece` tells, which is slow and sure.

        Args:
            text: UTF-8.
            literal: whether control tokens in it are text.
        """
        parts, starts = ([text], [0]) if literal else self._split(text)
        places = [self._place(part, start, literal) for part, start in zip(parts, starts, strict=True) if part]
        empty = np.empty(0, np.int64)
        ids, begins, finishes = zip((empty.astype(np.int32), empty, empty), *places, strict=True)
        return np.concatenate(ids), np.concatenate(begins), np.concatenate(finishes)

    def _place(self, part: bytes, start: int, literal: bool) -> Places:
        if part in self._added and not literal:
            return np.array([self._added[part]], np.int32), np.array([start]), np.array([start + len(part)])
        found = self._model.encode(part, return_type="offset_mapping")
        ids, offsets = np.array(found["ids"], np.int32), np.array(found["offsets"], np.int64).reshape(-1, 2)
        unknown = [] if literal else np.flatnonzero(ids == self._model.unk_id()).tolist()
        for place in unknown:  # transformers looks it up by its text
            ids[place] = self._tokenizer.convert_tokens_to_ids(found["pieces"][place].decode())
        takes_some = offsets[:, 0] < offsets[:, 1]
        own_ends = np.where(takes_some, offsets[:, 1], len(part))
        return ids, start + offsets[:, 0], start + np.minimum.accumulate(own_ends[::-1])[::-1]

    def ids_of_tokenizer(self, text: bytes, literal: bool) -> NDArray[np.int32]:
        """The ids that the tokenizer itself gives."""
        encoded = self._tokenizer(text.decode(), add_special_tokens=False, split_special_tokens=literal)
        return np.array(encoded["input_ids"], np.int32)

    def _split(self, text: bytes) -> tuple[list[bytes], list[int]]:
        """Control tokens and what is between them, and where each begins."""
        parts = [part for part in self._control.split(text) if part]
        starts = ends(list(map(len, parts)))[:-1].tolist()
        if not self._strips:
            return parts, starts
        for place, part in enumerate(parts):
            token = self._strips.get(part)
            if token and token.rstrip and place + 1 < len(parts):
                after = parts[place + 1]
                parts[place + 1] = after.decode().lstrip().encode()
                starts[place + 1] += len(after) - len(parts[place + 1])
            if token and token.lstrip and place:
                parts[place - 1] = parts[place - 1].decode().rstrip().encode()
        kept = [place for place, part in enumerate(parts) if part]
        return [parts[place] for place in kept], [starts[place] for place in kept]


def _piece_lengths(model: SentencePieceProcessor) -> tuple[NDArray[np.int64] | None, int]:
    """Bytes that every piece takes of a text, and how many are put before it; None where the model changes texts."""
    settings = ModelProto.FromString(model.serialized_model_proto())
    normalizer = settings.normalizer_spec
    changes = normalizer.precompiled_charsmap or normalizer.remove_extra_whitespaces
    if changes or not normalizer.escape_whitespaces or settings.trainer_spec.treat_whitespace_as_suffix:
        return None, 0
    kinds = ModelProto.SentencePiece
    written = (kinds.NORMAL, kinds.USER_DEFINED)
    lengths = [
        len(piece.piece.replace("▁", " ").encode()) if piece.type in written else int(piece.type == kinds.BYTE)
        for piece in settings.pieces
    ]
    return np.array(lengths, np.int64), int(normalizer.add_dummy_prefix)
