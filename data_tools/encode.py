"""Text and learnt spans → token ids and mask runs, exactly as the Hugging Face tokenizer encodes the whole text.

Byte-level tokenizers write every byte of a text into exactly one token, so the lengths of tokens in bytes say where
each begins, and the masks of a whole batch come from a few numpy calls. So they do for SentencePiece models that leave
texts as they are. Texts that are not so simple (a normalizer changed them, control tokens are to stay text) and other
tokenizers take the tokenizer's own offsets.
"""

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from data_tools.backends import byte_strings, load_gigatoken, plain_backend, token_lengths
from data_tools.chat_text import RenderedChat
from data_tools.masks import Masks, label_counts, mask_runs, token_borders
from data_tools.pieces import PieceEncoder, Places
from data_tools.skeleton import FilledChat
from data_tools.texts import Item, Texts, ends, texts_of
from data_tools.tokenization_sentencepiece import SentencePieceTokenizer
from data_tools.tokens import Tokens
from data_tools.words import word_encoder

_NONE: Mapping[int, RenderedChat | Tokens] = MappingProxyType({})


@dataclass(frozen=True)
class Documents:
    """The tokens of a batch of documents, end to end."""

    ids: NDArray[np.int32]
    offsets: NDArray[np.int64]
    """[documents + 1], where each begins in `ids`."""
    masks: Masks
    run_weights: list[list[float] | None]
    """For each document, one weight per trained run; None: all 1."""
    trained: NDArray[np.int32]
    """[documents] labels: trained tokens, less a trained first token, which nothing predicts."""
    weight: NDArray[np.float32]
    """[documents] sums of the weights of labels."""

    def __len__(self) -> int:
        return len(self.trained)

    def mask(self, document: int) -> NDArray[np.bool_]:
        """One bool a token of a document."""
        runs = self.masks.runs[self.masks.offsets[document] : self.masks.offsets[document + 1]]
        return np.repeat(np.arange(len(runs)) % 2 == 1, runs)

    def digests(self) -> NDArray[np.uint64]:
        """64 bits of the tokens of each document: equal conversations are equal here, wherever they come from."""
        data, edges = memoryview(self.ids.astype("<i4", copy=False).tobytes()), (4 * self.offsets).tolist()
        hashes = [xxhash.xxh3_64_intdigest(data[start:end]) for start, end in pairwise(edges)]
        return np.array(hashes, np.uint64)


class Encoder:
    """Encodes like the tokenizer on whole texts; never truncates, never adds a token.

    Args:
        tokenizer: whose ids are made; it will not truncate or add tokens any more.
        engine: `gigatoken`, which was seen to agree with the tokenizer, or `tokenizers`; one over a SentencePiece model
            is always encoded by `sentencepiece`.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, engine: str = "tokenizers") -> None:
        self._pieces = PieceEncoder(tokenizer) if isinstance(tokenizer, SentencePieceTokenizer) else None
        if self._pieces is not None:
            self._in_batches, self._composes = self._pieces.keeps_bytes, False
            return
        self._backend = plain_backend(tokenizer)
        lengths = token_lengths(self._backend)
        self._in_batches = lengths is not None
        self._token_lengths = None if lengths is None else pa.array(lengths)
        self._composes = self._backend.normalizer is not None
        self._fast = load_gigatoken(self._backend) if engine == "gigatoken" else None
        self._words = word_encoder(self._backend) if self._fast is None else None

    def encode(self, items: Sequence[Item]) -> Documents:
        """Encode documents; every token that holds a byte of a learnt span is trained."""
        odd = {
            number: item
            for number, item in enumerate(items)
            if not isinstance(item, FilledChat) and (isinstance(item, Tokens) or item.literals)
        }
        return self.encode_texts(texts_of(items), odd)

    def encode_texts(self, texts: Texts, odd: Mapping[int, RenderedChat | Tokens] = _NONE) -> Documents:
        """Encode texts, and in the places of some of them what is more than a text."""
        simple = self._are_simple(texts)
        simple[list(odd)] = False
        counts = texts.border_counts
        if not self._in_batches:
            ids, offsets = np.empty(0, np.int32), np.zeros(len(texts) + 1, np.int64)
            borders, counts = np.empty(0, np.int64), np.zeros_like(counts)
            simple[:] = False
        else:
            ids, offsets, lengths = self._ids(texts)
            token_ends = _token_ends(lengths, texts.data.nbytes)
            reached = token_ends[offsets]
            simple &= np.diff(reached) == np.diff(texts.offsets)
            borders = self._borders(texts, simple, token_ends, reached, offsets)
            counts = np.where(simple, counts, 0)
        if not simple.all():
            each = {number: odd.get(number) or texts.rendered(number) for number in np.flatnonzero(~simple).tolist()}
            ids, offsets, borders, counts = self._replace(each, ids, offsets, borders, counts)
        masks = mask_runs(borders, counts, offsets)
        return Documents(ids, offsets, masks, texts.weights, *label_counts(masks, _every_run(texts.weights, masks)))

    def _borders(
        self,
        texts: Texts,
        simple: NDArray[np.bool_],
        token_ends: NDArray[np.signedinteger[Any]],
        reached: NDArray[np.signedinteger[Any]],
        offsets: NDArray[np.int64],
    ) -> NDArray[np.int64]:
        """The borders of the trained tokens of all simple texts; the others are not of as many bytes as their tokens.

        Args:
            reached: [texts + 1] the bytes of tokens before each text.
        """
        counts = texts.border_counts
        moved = np.repeat(reached[:-1] - texts.offsets[:-1], counts)  # after a text that is not simple
        spans = texts.borders + moved
        if not simple.all():
            spans, counts = spans[np.repeat(simple, counts)], np.where(simple, counts, 0)
        own_ends = token_ends[1:] if self._pieces is None else _with_next(token_ends)
        borders = token_borders(own_ends, token_ends[:-1], spans.astype(token_ends.dtype).reshape(-1, 2))
        if self._pieces is not None:  # tokens without bytes look as if they were in the text before or after
            borders = np.clip(borders, np.repeat(offsets[:-1], counts), np.repeat(offsets[1:], counts))
        return borders

    def encode_alone(self, item: RenderedChat | Tokens) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
        """The ids and the mask of one document by the tokenizer's own offsets, which is slow and sure."""
        ids, borders = self._encode_one(item)
        mask = np.zeros(len(ids) + 1, np.int8)
        np.add.at(mask, borders, np.tile([1, -1], len(borders) // 2).astype(np.int8))
        if self._pieces is not None and isinstance(item, RenderedChat):
            own = [self._pieces.ids_of_tokenizer(part, literal) for part, literal in _parts(item)]
            ids = np.concatenate(own)
        return ids, np.cumsum(mask[:-1]) > 0

    def _are_simple(self, texts: Texts) -> NDArray[np.bool_]:
        """Whether the tokenizer leaves each text as it is, before it cuts it into tokens."""
        simple = np.ones(len(texts), np.bool_)
        if self._composes and not texts.data.tobytes().isascii():
            each = (texts.text(number) for number in range(len(texts)))
            simple[:] = [text.isascii() or unicodedata.is_normalized("NFC", text.decode()) for text in each]
        return simple

    def _ids(self, texts: Texts) -> tuple[NDArray[np.int32], NDArray[np.int64], NDArray[np.integer[Any]]]:
        """The ids of all texts end to end, where each text begins, and the bytes that each token takes."""
        if self._pieces is not None:
            return self._pieces.encode([texts.text(number) for number in range(len(texts))])
        ids, offsets = self._ids_of_bytes(texts)
        assert self._token_lengths is not None
        numbers = pa.Array.from_buffers(pa.int32(), len(ids), [None, pa.py_buffer(ids)])
        # Twice as fast as numpy, which makes 64-bit numbers of them first; no id is outside.
        return ids, offsets, pc.take(self._token_lengths, numbers, boundscheck=False).to_numpy()

    def _ids_of_bytes(self, texts: Texts) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        if self._fast is not None:
            layout = self._fast.encode_batch(byte_strings(texts.data, texts.offsets), parallel=False).layout
            offsets = np.asarray(layout.offsets.data).astype(np.int64)
            return np.asarray(layout.content.data)[offsets[0] : offsets[-1]].view(np.int32), offsets - offsets[0]
        each = [texts.text(number).decode() for number in range(len(texts))]
        if self._words is not None:
            return self._words.encode(each)
        ids = [encoding.ids for encoding in self._backend.encode_batch_fast(each, add_special_tokens=False)]
        return np.fromiter(chain.from_iterable(ids), np.int32, sum(map(len, ids))), ends(list(map(len, ids)))

    def _replace(
        self,
        others: Mapping[int, RenderedChat | Tokens],
        ids: NDArray[np.int32],
        offsets: NDArray[np.int64],
        borders: NDArray[np.int64],
        counts: NDArray[np.int64],
    ) -> tuple[NDArray[np.int32], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Encode what is not simple one by one, and put it into its places."""
        each_ids = np.split(ids, offsets[1:-1])
        each_borders = np.split(borders - np.repeat(offsets[:-1], counts), np.cumsum(counts)[:-1])
        for number, item in others.items():
            each_ids[number], each_borders[number] = self._encode_one(item)
        new_offsets = ends([len(each) for each in each_ids])
        new_counts = np.array([len(each) for each in each_borders], np.int64)
        new_borders = np.concatenate(each_borders) + np.repeat(new_offsets[:-1], new_counts)
        return np.concatenate(each_ids).astype(np.int32, copy=False), new_offsets, new_borders, new_counts

    def _encode_one(self, item: RenderedChat | Tokens) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """The ids of one document, and the borders of its trained tokens."""
        if isinstance(item, Tokens):
            changes = np.flatnonzero(np.diff(np.array([False, *item.trained, False], np.int8)))
            return np.array(item.input_ids, np.int32), changes.astype(np.int64)
        each = [self._encode_part(part, literal) for part, literal in _parts(item)]
        befores = ends([len(part) for part, _ in _parts(item)])[:-1].tolist()
        starts, finishes = (
            np.concatenate([places[which] + before for places, before in zip(each, befores, strict=True)])
            for which in (1, 2)
        )
        spans = np.array(item.spans, np.int64).reshape(-1, 2)
        return np.concatenate([ids for ids, _, _ in each]), token_borders(finishes, starts, spans)

    def _encode_part(self, part: bytes, literal: bool) -> Places:
        """The ids of a text, and the bytes where each token begins and ends."""
        if self._pieces is not None:
            return self._pieces.encode_one(part, literal)
        text = part.decode()
        self._backend.encode_special_tokens = literal  # as any other text
        encoding = self._backend.encode(text, add_special_tokens=False)
        self._backend.encode_special_tokens = False
        characters = np.array(encoding.offsets, np.int64).reshape(-1, 2)
        starts, finishes = _in_bytes(part, characters).T if len(text) < len(part) else characters.T
        return np.array(encoding.ids, np.int32), starts, finishes


def _parts(item: RenderedChat) -> list[tuple[bytes, bool]]:
    """The text cut around what looks like control tokens and is text, and whether a part is that."""
    edges = [0, *(edge for literal in item.literals for edge in literal), len(item.text)]
    return [(item.text[start:end], number % 2 == 1) for number, (start, end) in enumerate(pairwise(edges))]


def _in_bytes(text: bytes, characters: NDArray[np.int64]) -> NDArray[np.int64]:
    """Places in characters → in bytes."""
    starts_character = (np.frombuffer(text, np.uint8) & 0xC0) != 0x80
    return np.append(np.flatnonzero(starts_character), len(text))[characters]


def _token_ends(lengths: NDArray[np.integer[Any]], most: int) -> NDArray[np.signedinteger[Any]]:
    """[tokens + 1] 0, and where each token ends, in bytes of texts that have so many; in numbers that are not larger
    than they need be (a normalizer may have made a text several times as long).
    """
    kind: type[np.signedinteger[Any]] = np.int32 if most < 2**28 else np.int64
    token_ends = np.zeros(len(lengths) + 1, kind)
    np.cumsum(lengths, dtype=kind, out=token_ends[1:])
    return token_ends


def _with_next(token_ends: NDArray[np.signedinteger[Any]]) -> NDArray[np.signedinteger[Any]]:
    """Where each token ends; one that takes no byte of its text (a space put before it) belongs to the next."""
    own = token_ends[1:]
    if (nothing := np.flatnonzero(own == token_ends[:-1])).size == 0:
        return own
    own = own.copy()
    own[nothing] = own[np.minimum(nothing + 1, len(own) - 1)]
    return own


def _every_run(weights: list[list[float] | None], masks: Masks) -> NDArray[np.float32] | None:
    """Weights of trained runs → of all runs; None when all are 1."""
    if not any(weights):
        return None
    every = np.ones(len(masks.runs), np.float32)
    for document, own in enumerate(weights):
        if own:
            start, end = masks.offsets[document : document + 2]
            every[start + 1 : end : 2] = own
    return every
