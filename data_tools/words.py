"""Text → ids for the engine `tokenizers`, word by word: the model is asked for each word once, and it is remembered.

A byte-level tokenizer cuts a text at its added tokens, and what is between them by a regular expression into words; the
ids of a word depend on nothing else. The Rust tokenizer spends its time on where each piece of the text came from, not
on merges. Here Python's `re` cuts, and the tokenizer's own `model` is asked for words that are new:

    text     Call me Bob’s friend!<|im_end|>
    parts    Call me    Bob’s    friend!    <|im_end|>
    words    Call, me            friend, !

It must be known that this is the same. So only the expressions of `PATTERNS` are used, and only on ASCII, of which
every version of Unicode says the same. A stretch around other characters is encoded by the whole tokenizer. It begins
and ends between a letter or digit and white space: no word has the one before the other, and no expression looks back.
"""

import re
from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel

from data_tools.backends import settings_of
from data_tools.texts import ends

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""What `ByteLevel` itself cuts by."""
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
QWEN3_5 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
GPT4O = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEKKEN = GPT4O.replace("(?i:'s|'t|'re|'ve|'m|'ll|'d)?", "").replace(r"\p{N}{1,3}", r"\p{N}")
BESIDE_DIGITS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+(?![^\s\p{N}])|\s+"
"""The same where digits are cut out first; what is before them ends there, as at the end of a text."""
PATTERNS = frozenset([GPT2, LLAMA3, QWEN2, QWEN3_5, GPT4O, TEKKEN])
"""Expressions that match every character of every text, and mean the same in Python once their classes of characters
are written out.
"""

_NONE = dict.fromkeys((r"\p{M}", r"\p{Lt}", r"\p{Lm}", r"\p{Lo}"), "")
_ASCII_CLASSES = {r"\p{L}": "A-Za-z", r"\p{Lu}": "A-Z", r"\p{Ll}": "a-z", r"\p{N}": "0-9", r"\s": r"\t-\r ", **_NONE}
"""What classes of Unicode have in ASCII; Python's own `\\s` has \\x1c to \\x1f as well."""

WORDS = 2**17
"""Words that are remembered, at most: 16 MB of usual ones."""
LONGEST = 64
"""Characters of a word that is remembered."""

_STRETCHES = re.compile(
    r"((?:[\x00-\x7f]*[A-Za-z0-9](?=[\t-\r ]))?)(.*?(?:[A-Za-z0-9](?=[\t-\r ])|\Z))", re.DOTALL
).findall
"""ASCII up to the last letter or digit before white space, then others up to the first one, again and again."""


class Words(dict[str, bytes]):
    """Word → its ids as 32-bit numbers, found by the model when it is asked for the first time."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._characters = _byte_characters()

    def __missing__(self, word: str) -> bytes:
        ids = _as_bytes([token.id for token in self._model.tokenize(word.translate(self._characters))])
        if len(word) <= LONGEST:
            if len(self) >= WORDS:
                self.clear()
            self[word] = ids
        return ids


class WordEncoder:
    """Encodes like the tokenizer on whole texts, as long as nothing is added to it.

    Args:
        backend: a tokenizer that never truncates or adds a token.
        pattern: its words in ASCII, from `word_pattern`.
    """

    def __init__(self, backend: Tokenizer, pattern: str) -> None:
        self._backend = backend
        self._cut = re.compile(pattern).findall
        self._words = Words(backend.model)
        added = {token.content: number for number, token in backend.get_added_tokens_decoder().items()}
        self._added = {content: np.int32(number).tobytes() for content, number in added.items()}
        longest_first = sorted(added, key=len, reverse=True)  # of those that begin at one place
        self._split = re.compile(f"({'|'.join(map(re.escape, longest_first))})").split if added else lambda text: [text]

    def encode(self, texts: Sequence[str]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """The ids of all texts end to end, and [texts + 1] where each begins."""
        parts = [self._parts(text) for text in texts]
        others = list({part: None for each in parts for part in each if not part.isascii() and part not in self._added})
        encodings = self._backend.encode_batch_fast(others, add_special_tokens=False)
        known = {part: _as_bytes(encoding.ids) for part, encoding in zip(others, encodings, strict=True)} | self._added
        each_ids = [b"".join([known[part] if part in known else self._ids_of(part) for part in each]) for each in parts]
        return np.frombuffer(b"".join(each_ids), np.int32), ends([len(ids) // 4 for ids in each_ids])

    def _parts(self, text: str) -> list[str]:
        """Added tokens, ASCII stretches and others, in their order."""
        parts: list[str] = self._split(text)
        if text.isascii():
            return parts
        whole = self._added.keys()
        stretches = [[part] if part in whole else chain.from_iterable(_STRETCHES(part)) for part in parts]
        return list(chain.from_iterable(stretches))

    def _ids_of(self, stretch: str) -> bytes:
        return b"".join(map(self._words.__getitem__, self._cut(stretch)))


def word_encoder(backend: Tokenizer) -> WordEncoder | None:
    """Encodes what this tokenizer encodes; None where that is not known to be the same."""
    added = list(backend.get_added_tokens_decoder().values())
    takes_more = any(token.lstrip or token.rstrip or token.single_word or not token.content for token in added)
    normalized = {token.normalized for token in added}  # these are looked for after the others, in normalized text
    settled = len(normalized) < 2 and (normalized != {True} or backend.normalizer is None)
    random = not isinstance(backend.model, BPE) or bool(backend.model.dropout)
    pattern = word_pattern(backend)
    if pattern is None or takes_more or not settled or random or len({token.content for token in added}) < len(added):
        return None
    return WordEncoder(backend, pattern)


def word_pattern(backend: Tokenizer) -> str | None:
    """How `re` cuts ASCII texts into the words of a byte-level tokenizer; None where that is not known."""
    if settings_of(backend.normalizer).get("type") not in (None, "NFC"):  # which leave ASCII as it is
        return None
    pre_tokenizer = settings_of(backend.pre_tokenizer)
    *before, last = pre_tokenizer.get("pretokenizers", [pre_tokenizer])
    if last.get("type") != "ByteLevel" or last["add_prefix_space"] or len(before) > 1:
        return None
    if not before:
        return in_ascii(GPT2) if last["use_regex"] else None
    first = before[0]
    if first["type"] == "Digits" and last["use_regex"]:
        return in_ascii(rf"\p{{N}}{'' if first['individual_digits'] else '+'}|{BESIDE_DIGITS}")
    if first["type"] != "Split" or last["use_regex"]:
        return None
    kept = (first["behavior"], first["invert"]) in (("Isolated", False), ("Removed", True))  # all is matched
    given = first["pattern"].get("Regex")
    return in_ascii(given) if kept and given in PATTERNS else None


def in_ascii(pattern: str) -> str:
    """One of the expressions above for `re` and ASCII texts."""
    parts = re.split(r"(\[[^\]]*\]|\\p\{\w+\}|\\[sS])", pattern)  # odd places: classes
    for place, part in enumerate(parts[1::2]):
        inside = part.strip("[]") if part[0] == "[" else part.replace(r"\S", r"^\s")
        for name, characters in _ASCII_CLASSES.items():
            inside = inside.replace(name, characters)
        parts[2 * place + 1] = f"[{inside}]"
    return "".join(parts)


def _as_bytes(ids: list[int]) -> bytes:
    return np.array(ids, np.int32).tobytes()


def _byte_characters() -> dict[int, str]:
    """The character that stands for each ASCII byte in the vocabulary."""
    pre_tokenizer = ByteLevel(add_prefix_space=False, use_regex=False)
    return {byte: pre_tokenizer.pre_tokenize_str(chr(byte))[0][0] for byte in range(128)}
