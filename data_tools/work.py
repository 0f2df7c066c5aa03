"""What there is to do: sources, tokenizer and settings of a preparation, looked at before anything is written.

`prepare` and each of the shares that run beside each other (`share`) begin with it.
"""

from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from transformers import PreTrainedTokenizerBase

from data_tools.backends import choose_encoder, plain_backend
from data_tools.chat import ChatTemplate, Learning
from data_tools.chat_text import RenderedChat
from data_tools.config import DataConfig, TokenizerTraining
from data_tools.documents import Making
from data_tools.errors import RowError, UserError
from data_tools.files import is_hub_id
from data_tools.fingerprint import file_digests, fingerprint_of, token_settings
from data_tools.formats import Conversation, PlainText
from data_tools.hub import tokenizer_folder
from data_tools.inputs import SAMPLE_ROWS, Input, read_input, readable, texts_in
from data_tools.lock import Lock
from data_tools.mirror import Mirror
from data_tools.piece_models import save_tokenizer
from data_tools.pinned import check_sources, check_tokenizer
from data_tools.proofs import sampled_every
from data_tools.store import folder_digests
from data_tools.template_choice import check_template_tokens, choose_template
from data_tools.tokenizer import (
    PlainTextFrame,
    add_special_tokens,
    control_tokens,
    load_tokenizer,
    template_of,
    tokenizer_digest,
    train_tokenizer,
)


@dataclass(frozen=True)
class Work:
    """What there is to do."""

    config: DataConfig
    given: Input
    tokenizer: PreTrainedTokenizerBase
    settings: dict[str, Any]
    """Everything that decides the tokens."""

    @property
    def made_with(self) -> dict[str, Any]:
        """How tokens are asked for, and what decides them, as the manifest will have it."""
        return {"asked": self.config.asked(), "settings": self.settings}

    @property
    def fingerprint(self) -> str:
        """Names the settings."""
        return fingerprint_of(self.settings)

    @property
    def rows(self) -> int:
        """Of the whole input."""
        return sum(unit.rows for unit in self.given.units)


def look(config: DataConfig, store: Path, lock_file: Path | None) -> Work:
    """Look at all inputs; only the embedded sample data, where a source asks for them, are written into the store.

    Args:
        config: the run's `data` section.
        store: the folder of the store.
        lock_file: pins what is on the hub, where `fetch` wrote it.

    Raises:
        UserError: an input is missing or empty, or the lock pins other inputs.
    """
    lock = Lock.read(lock_file) if lock_file else None
    given = read_input(config, store, lock)
    tokenizer = _tokenizer(config, given, lock)
    settings = token_settings(config, given.sources, given.configs, tokenizer)
    if lock:
        check_sources(lock, config.sources, given.sources, file_digests(given.sources, settings))
    return Work(config, given, tokenizer, settings)


def place_tokenizer(work: Work, mirror: Mirror) -> None:
    """Write the tokenizer into the store; one that is the same stays as it is, for others may be reading it."""
    with TemporaryDirectory(prefix=".tokenizer.", suffix=".tmp", dir=mirror.folder) as temporary:
        folder = Path(temporary) / "tokenizer"
        save_tokenizer(work.tokenizer, folder)
        mirror.put_folder("tokenizer", folder)


def making_of(work: Work, mirror: Mirror) -> Making:
    """What a maker of documents needs to know, once the tokenizer is in its place.

    Raises:
        UserError: the tokenizer encodes differently once it was saved, or the encoder that is asked for cannot be used.
    """
    return Making(
        store=mirror.uri or str(mirror.folder.absolute()),
        fingerprint=work.fingerprint,
        tokenizer=folder_digests(mirror.folder / "tokenizer"),
        template_date=work.config.template_date,
        learning=Learning.of(work.config),
        sources=work.given.configs,
        engine=_choose_engine(work, mirror.folder / "tokenizer"),
        sampled_every=sampled_every(work.rows),
    )


def _tokenizer(config: DataConfig, given: Input, lock: Lock | None) -> PreTrainedTokenizerBase:
    tokenizer = _tokenizer_as_it_is(config, given, lock)
    add_special_tokens(tokenizer, config.special_tokens)
    if config.chat_template is not None:
        check_template_tokens(tokenizer, config.chat_template)
    return tokenizer


def _tokenizer_as_it_is(config: DataConfig, given: Input, lock: Lock | None) -> PreTrainedTokenizerBase:
    if isinstance(config.tokenizer, TokenizerTraining):
        tokenizer = train_tokenizer(texts_in(given), config.tokenizer.vocab_size)
        tokenizer.chat_template = choose_template(str(tokenizer.chat_template), config.chat_template, "the tokenizer")
        return tokenizer
    name = config.tokenizer
    if lock:
        check_tokenizer(lock, name, config.tokenizer_revision)
    if is_hub_id(name):
        name = tokenizer_folder(name, config.tokenizer_revision, lock)
    return load_tokenizer(name, config.chat_template, texts_in(given), given.chats_in)


def _choose_engine(work: Work, folder: Path) -> str:
    """What encodes with the tokenizer in a folder."""
    saved = load_tokenizer(str(folder))
    if tokenizer_digest(saved) != tokenizer_digest(work.tokenizer):
        raise UserError("data.tokenizer: saved and loaded again it encodes differently; save it with this transformers")
    texts = _first_texts(saved, work)  # first: the plain backend adds no token any more
    asked = work.config.encoder
    if not saved.is_fast:
        if asked != "auto":
            raise UserError(f"data.encoder: {asked} cannot encode a SentencePiece model; set it to auto")
        return "sentencepiece"
    return choose_encoder(asked, plain_backend(saved), texts)


def _first_texts(tokenizer: PreTrainedTokenizerBase, work: Work) -> list[str]:
    """The first documents of every source, as the model will see them."""
    config, given = work.config, work.given
    # A template that is broken as a whole is said here, at once, not once per row.
    template = ChatTemplate(
        template_of(tokenizer),
        tokenizer.special_tokens_map,
        config.template_date,
        Learning.of(config),
        control_tokens(tokenizer),
    )
    frame = PlainTextFrame(tokenizer, config.control_tokens)
    chats: list[RenderedChat] = []
    for number in range(len(given.sources)):
        first = [unit for unit in given.units if unit.source == number][:1]
        for _, sample in islice(readable(given, first), SAMPLE_ROWS):
            try:
                if isinstance(sample, Conversation):
                    chats += template.render(sample)
                elif isinstance(sample, PlainText):
                    chats.append(frame.render(sample, everything=False))
            except RowError:
                continue  # will be a reject, with its reason
    return [chat.text.decode() for chat in chats]
