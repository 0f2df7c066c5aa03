"""Tokenizers that exist only as a SentencePiece model: transformers' own tokenizer over `sentencepiece` is the truth.

What transformers converts from such a model without being told a class is often another tokenizer ("Hello world" loses
its first space), so a conversion is taken only where it agrees.
"""

import errno
import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

from sentencepiece import SentencePieceProcessor
from transformers import PreTrainedTokenizerBase

from data_tools.errors import UserError
from data_tools.tokenization_sentencepiece import SentencePieceTokenizer

SAVED_CLASS = "SentencePieceBackend"
"""What saved folders call their class, so that `AutoTokenizer` needs no code of theirs."""

SAMPLE_TEXTS = 200
"""Texts of the data on which a converted tokenizer must agree with `sentencepiece`."""

PROBES = (
    *(
        "Hello world",
        " Hello",
        "  Hello  there ",
        "   ",
        "\n\nHi\n\tx\r\n",
        "é 日本語 🙂👩‍💻",
        "\u1100\u1161 ﬁ ㍍ e\u0301",
    ),
    *("\x00\x07\ufdd0 ∰", "\u00a0x\u3000y", "▁x ▁▁y", "<0x41>", "def f(x):\n    return x  # 1,234"),
)
"""Texts with which tokenizers that are not quite the same differ."""


def find_piece_model(name: str) -> Path | None:
    """The SentencePiece model that is all there is of a tokenizer; None where there is a `tokenizer.json`, or none.

    Args:
        name: the model itself, a folder, or something else.

    Raises:
        UserError: a folder has several.
    """
    path = Path(name)
    if path.is_file():
        found = [path] if path.suffix == ".model" else []
    else:
        found = [] if (path / "tokenizer.json").exists() else sorted(path.glob("*.model"))
        found = [model for model in found if model.name == "tokenizer.model"] or found
    if len(found) > 1:
        raise UserError(f"data.tokenizer: {name} has {found[0].name} and {found[1].name}; give the path of one")
    return found[0] if found and _is_piece_model(found[0]) else None


def _is_piece_model(model: Path) -> bool:
    """Vocabularies of tiktoken are called `tokenizer.model` as well."""
    try:
        SentencePieceProcessor(model_file=str(model))
    except (RuntimeError, OSError):
        return False
    return True


def load_piece_tokenizer(name: str, model: Path) -> SentencePieceTokenizer:
    """The tokenizer over a SentencePiece model, with what is said of it beside the model.

    Control tokens of the model, which SentencePiece never finds in text, are special tokens.

    Args:
        name: a folder with `model`, or `model` itself, which is then all that is read.
        model: the file.

    Raises:
        UserError: its settings ask for what cannot be followed.
    """
    settings = tokenizer_settings(name)
    if settings.get("sp_model_kwargs"):
        raise UserError(f"data.tokenizer: {name}: sp_model_kwargs in tokenizer_config.json is not followed; remove it")
    if Path(name).is_file():
        tokenizer = SentencePieceTokenizer(vocab_file=str(model), legacy=True)
    else:
        tokenizer = SentencePieceTokenizer.from_pretrained(name, vocab_file=str(model), legacy=True)
    pieces = tokenizer.sp_model
    own = {"bos_token": pieces.bos_id(), "eos_token": pieces.eos_id()}
    own |= {"unk_token": pieces.unk_id(), "pad_token": pieces.pad_id()}
    special = {key: pieces.id_to_piece(id) for key, id in own.items() if id >= 0 and getattr(tokenizer, key) is None}
    tokenizer.add_special_tokens(special)
    control = [pieces.id_to_piece(id) for id in range(len(pieces)) if pieces.is_control(id)]
    known = tokenizer.added_tokens_encoder
    tokenizer.add_tokens([piece for piece in control if piece not in known], special_tokens=True)
    if odd := [token.content for token in tokenizer.added_tokens_decoder.values() if token.single_word]:
        raise UserError(f"data.tokenizer: {name}: {odd[0]!r} is a token between words only, which is not followed")
    _begin_and_end(tokenizer, settings)
    return tokenizer


def tokenizer_settings(name: str) -> dict[str, Any]:
    """What `tokenizer_config.json` of a folder says; nothing where there is none.

    Raises:
        UserError: it cannot be read.
    """
    file = Path(name) / "tokenizer_config.json"
    if not file.is_file():
        return {}
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise UserError(f"data.tokenizer: cannot read {file}: {error}") from None


def _begin_and_end(tokenizer: SentencePieceTokenizer, settings: dict[str, Any]) -> None:
    """Let a text begin and end as asked; only `special_tokens_pattern` is kept when the tokenizer is saved."""
    pattern = settings.get("special_tokens_pattern")
    if pattern is None:
        begins = settings.get("add_bos_token") and tokenizer.bos_token is not None
        ends = settings.get("add_eos_token") and tokenizer.eos_token is not None
        pattern = "_".join(["bos"] * bool(begins) + ["eos"] * bool(ends)) or "none"
    tokenizer.special_tokens_pattern = tokenizer.init_kwargs["special_tokens_pattern"] = pattern


def agrees(converted: PreTrainedTokenizerBase, truth: SentencePieceTokenizer, texts: Iterable[str]) -> bool:
    """Whether a converted tokenizer gives the ids of `sentencepiece`, for hard texts and for those of the data.

    One whose class numbers the pieces in its own way has nothing to agree with.
    """
    vocabulary, pieces = converted.get_vocab(), truth.sp_model
    if any(vocabulary.get(pieces.id_to_piece(id), id) != id for id in range(len(pieces))):
        return True
    between = [f"{truth.eos_token} Hi{truth.eos_token}\n"] if truth.eos_token else []
    return same_ids(converted, truth, chain(PROBES, between, islice(texts, SAMPLE_TEXTS)))


def same_ids(one: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase, texts: Iterable[str]) -> bool:
    """Whether two tokenizers encode some texts equally."""
    ids = ([each(text, add_special_tokens=False)["input_ids"] for each in (one, other)] for text in texts)
    return all(first == second for first, second in ids)


def piece_digest(tokenizer: SentencePieceTokenizer) -> str:
    """sha256 of the model and the added tokens."""
    added = {id: token.__getstate__() for id, token in tokenizer.added_tokens_decoder.items()}
    digest = hashlib.sha256(tokenizer.sp_model.serialized_model_proto())
    digest.update(json.dumps([added, tokenizer.special_tokens_pattern]).encode())
    return digest.hexdigest()


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> Sequence[str]:
    """Write a tokenizer so that `AutoTokenizer` loads the same one, beside whatever model.

    Raises:
        UserError: the disk is full.
    """
    try:
        files: Sequence[str] = tokenizer.save_pretrained(folder)
    except Exception as error:  # the tokenizers library raises plain Exceptions
        if os.strerror(errno.ENOSPC) not in str(error) and os.strerror(errno.EDQUOT) not in str(error):
            raise
        raise UserError(f"cannot write {folder}: {error}; make room there and run the same command again") from None
    if isinstance(tokenizer, SentencePieceTokenizer):
        file = folder / "tokenizer_config.json"
        settings = json.loads(file.read_text(encoding="utf-8"))
        settings["tokenizer_class"] = SAVED_CLASS
        file.write_text(json.dumps(settings, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
    return files
