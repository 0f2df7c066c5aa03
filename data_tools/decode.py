"""Token ids → text, byte for byte: what a token holds, wherever its borders lie.

    tokens   caf   Ã   ©   .          ids of a byte-level vocabulary: é is two tokens
    pieces   caf   é       .          the fewest tokens that are whole characters, with their ids

`decode` of a run of ids drops spaces at its start in some tokenizers, and says nothing about single tokens. Here the
bytes of each token are taken from the vocabulary.
"""

import codecs
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from tokenizers import AddedToken, Tokenizer

from data_tools.errors import UserError

_PRINTED = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_MOVED = [byte for byte in range(256) if byte not in _PRINTED]
BYTE_OF = {chr(byte): byte for byte in _PRINTED} | {chr(256 + n): byte for n, byte in enumerate(_MOVED)}
"""Byte-level vocabularies write each byte as one character (GPT-2's table)."""

_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")


@dataclass(frozen=True)
class Piece:
    """The fewest tokens that are whole characters."""

    ids: list[int]
    text: str
    """Bytes that are no character are U+FFFD."""
    control: bool
    """Whether it is a control token, such as `<|im_end|>`: not the same characters as plain text."""


class TokenDecoder:
    """The vocabulary of a store's tokenizer.

    Args:
        folder: with `tokenizer.json`, or with `tokenizer.model` and `tokenizer_config.json`.

    Raises:
        UserError: there is none.
    """

    def __init__(self, folder: Path) -> None:
        file, model = folder / "tokenizer.json", folder / "tokenizer.model"
        if model.exists() and not file.exists():
            file, read = model, self._read_pieces
        else:
            read = self._read_tokenizer
        try:
            added = read(file)
        except Exception as error:  # the tokenizers library raises plain Exceptions
            raise UserError(f"cannot read {file}: {error}; copy the store again, or prepare it anew") from None
        # Some vocabularies add runs of spaces this way; they are plain text.
        self._control = {id: token.content for id, token in added.items() if token.special or token.content.strip()}
        self._known: dict[int, bytes] = {}

    def _read_tokenizer(self, file: Path) -> dict[int, AddedToken]:
        tokenizer = Tokenizer.from_file(str(file))
        decoder = repr(tokenizer.decoder)
        self._byte_level = "ByteLevel" in decoder
        self._sentencepiece = "▁" in decoder
        self._token, self._decode = tokenizer.id_to_token, tokenizer.decode
        added: dict[int, AddedToken] = tokenizer.get_added_tokens_decoder()
        return added

    def _read_pieces(self, file: Path) -> dict[int, AddedToken]:
        from sentencepiece import SentencePieceProcessor  # most stores need it not

        model = SentencePieceProcessor(model_file=str(file))
        self._byte_level, self._sentencepiece = False, True
        self._token = lambda id: model.id_to_piece(id) if 0 <= id < len(model) else None
        settings = json.loads((file.parent / "tokenizer_config.json").read_text(encoding="utf-8"))
        return {int(id): AddedToken(**token) for id, token in settings["added_tokens_decoder"].items()}

    def pieces(self, ids: Iterable[int]) -> list[Piece]:
        """All tokens of a run, in order; a character that the run's borders cut is U+FFFD."""
        pieces: list[Piece] = []
        for control, group in groupby(ids, key=self._is_control):
            if control:
                pieces += [Piece([id], self._control.get(id, f"<unknown id {id}>"), True) for id in group]
            elif self._byte_level or self._sentencepiece:
                pieces += self._whole_characters(group)
            else:
                members = list(group)
                pieces.append(Piece(members, self._decode(members, skip_special_tokens=False), False))
        return pieces

    def _is_control(self, id: int) -> bool:
        return id in self._control or self._token(id) is None

    def _whole_characters(self, ids: Iterable[int]) -> Iterator[Piece]:
        utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        waiting: list[int] = []
        text = ""
        for id in ids:
            waiting.append(id)
            text += utf8.decode(self._bytes(id))
            if not utf8.getstate()[0]:
                yield Piece(waiting, text, False)
                waiting, text = [], ""
        if waiting:
            yield Piece(waiting, text + utf8.decode(b"", final=True), False)

    def _bytes(self, id: int) -> bytes:
        if id not in self._known:
            token = self._token(id)
            assert token is not None, "unknown ids are shown as control tokens"
            self._known[id] = self._bytes_of(token)
        return self._known[id]

    def _bytes_of(self, token: str) -> bytes:
        if self._byte_level:
            return bytes(BYTE_OF[char] for char in token) if BYTE_OF.keys() >= set(token) else token.encode()
        if found := _BYTE_TOKEN.fullmatch(token):
            return bytes.fromhex(found[1])
        return token.replace("▁", " ").encode()
