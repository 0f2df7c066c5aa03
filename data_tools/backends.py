"""What encodes text: `gigatoken`, many times faster where it agrees, or `tokenizers`, the tokenizer's own Rust code.

How that is asked word by word, where it can be, is in `words.py`; the ids are the same.
"""

import json
from functools import lru_cache
from typing import Any

import gigatoken
import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, processors
from transformers import PreTrainedTokenizerBase

from data_tools.errors import UserError


def plain_backend(tokenizer: PreTrainedTokenizerBase) -> Tokenizer:
    """The tokenizer's Rust part, told never to truncate, pad or add a token: the tokenizer is changed by this."""
    backend: Tokenizer = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    # A byte-level post-processor trims spaces off the offsets, which would move the borders of spans.
    backend.post_processor = processors.Sequence([])
    return backend


def token_lengths(backend: Tokenizer) -> NDArray[np.uint16] | None:
    """Bytes of every token; None where a text is not simply the bytes of its tokens."""
    if not _is_byte_level(backend):
        return None
    vocabulary = backend.get_vocab(with_added_tokens=True)
    added = {token.content for token in backend.get_added_tokens_decoder().values()}
    lengths = np.zeros(max(vocabulary.values()) + 1, np.uint16)  # small: it is looked up for every token
    for token, number in vocabulary.items():
        lengths[number] = len(token.encode()) if token in added else len(token)  # one character stands for one byte
    return lengths


def _is_byte_level(backend: Tokenizer) -> bool:
    pre_tokenizer = settings_of(backend.pre_tokenizer)
    steps = pre_tokenizer.get("pretokenizers", [pre_tokenizer])
    normalizer = settings_of(backend.normalizer).get("type")
    return any(step.get("type") == "ByteLevel" for step in steps) and normalizer in (None, "NFC")


def settings_of(part: Any) -> dict[str, Any]:
    """What a part of a tokenizer is, as in tokenizer.json."""
    return {} if part is None else dict(json.loads(part.__getstate__()))


def load_gigatoken(backend: Tokenizer) -> gigatoken.Tokenizer | None:
    """gigatoken for the same tokenizer; None where it does not know this kind."""
    if any(token.single_word for token in backend.get_added_tokens_decoder().values()):
        return None  # gigatoken finds such tokens inside words too
    return _load_gigatoken(backend.to_str())


def byte_strings(data: NDArray[np.uint8], offsets: NDArray[np.int64]) -> Any:
    """Texts end to end as gigatoken takes them without a copy.

    Args:
        data: UTF-8.
        offsets: [texts + 1] where each begins.
    """
    import awkward  # type: ignore[import-untyped, unused-ignore]  # takes half a second, and gigatoken needs it as well

    characters = awkward.contents.NumpyArray(data, parameters={"__array__": "byte"})
    places = awkward.index.Index64(offsets)
    return awkward.Array(awkward.contents.ListOffsetArray(places, characters, parameters={"__array__": "bytestring"}))


@lru_cache(maxsize=1)
def _load_gigatoken(tokenizer_json: str) -> gigatoken.Tokenizer | None:
    try:
        return gigatoken.Tokenizer.from_json(tokenizer_json)
    except (ValueError, NotImplementedError, RuntimeError, TypeError, KeyError):
        return None  # what it raises for vocabularies that it does not know; then `tokenizers` encodes


def choose_encoder(asked: str, backend: Tokenizer, texts: list[str]) -> str:
    """`gigatoken` where it agrees with the tokenizer on some texts of the data, else `tokenizers`.

    Args:
        asked: `data.encoder`.
        backend: of the tokenizer, plain.
        texts: a sample of what will be encoded.

    Raises:
        UserError: `gigatoken` was asked for by name and cannot be used.
    """
    if asked == "tokenizers" or (asked == "auto" and token_lengths(backend) is None):
        return "tokenizers"
    fast = load_gigatoken(backend)
    agrees = fast is not None and all(
        fast.encode(text).tolist() == backend.encode(text, add_special_tokens=False).ids for text in texts
    )
    if agrees:
        return "gigatoken"
    if asked == "gigatoken":
        problem = "does not know this tokenizer" if fast is None else "disagrees with the tokenizer on this data"
        raise UserError(f"data.encoder: gigatoken {problem}; set it to auto")
    return "tokenizers"
