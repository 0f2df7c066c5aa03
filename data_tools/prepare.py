"""The driver: sources → units of work → actors → shards → manifest.

Killed at any moment, it goes on where it was: finished units are skipped, and the manifest comes last.
"""

import shutil
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from data_tools.actors import make_on_actors
from data_tools.backends import choose_encoder, plain_backend
from data_tools.changes import check_contents
from data_tools.chat import ChatTemplate, Learning
from data_tools.chat_text import RenderedChat
from data_tools.claim import claim, locked
from data_tools.config import DataConfig, TokenizerTraining
from data_tools.documents import DocumentMaker, Making
from data_tools.errors import RowError, UserError
from data_tools.files import is_hub_id
from data_tools.fingerprint import file_digests, fingerprint_of, token_settings
from data_tools.formats import Conversation, PlainText
from data_tools.hub import tokenizer_folder
from data_tools.inputs import SAMPLE_ROWS, Input, read_input, readable, texts_in
from data_tools.lock import Lock
from data_tools.manifest import check_rejects, write_store
from data_tools.mirror import Mirror, open_store
from data_tools.piece_models import save_tokenizer
from data_tools.pinned import check_sources, check_tokenizer
from data_tools.proofs import sampled_every
from data_tools.readers import WorkUnit
from data_tools.records import UnitRecord
from data_tools.rejects import REJECTS
from data_tools.sources import SourceFiles
from data_tools.store import MANIFEST, TokenStore, folder_digests, write_manifest
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
from data_tools.unfinished import Leftovers, begin, find_leftovers, remove_half_written

IN_PROCESS_ROWS = 50_000
"""Below this many rows, one process is done about as soon as actors are."""

OnStart = Callable[[Leftovers], None]
"""Called once, before the first unit is made and any is cleared away, with what an earlier preparation finished."""
OnUnit = Callable[[UnitRecord, int], None]
"""Called with each finished unit and the number of rows of all units."""


def prepare(
    config: DataConfig,
    store: Path,
    on_unit: OnUnit = lambda record, total: None,
    lock_file: Path | None = None,
    on_start: OnStart = lambda left: None,
) -> TokenStore:
    """Make the token store, or finish it; a finished store with the same settings is only opened.

    Args:
        config: the run's `data` section.
        store: the folder to write.
        on_unit: told about progress.
        lock_file: pins what is on the hub, where `fetch` wrote it.
        on_start: told what is done already, and what of it is of no use.

    Raises:
        UserError: an input is missing or empty, too many rows are rejected, no row became a document, a proof of the
            masks failed, the lock pins other inputs, or the store belongs to other settings.
    """
    claim(store)
    with locked(store):
        lock = Lock.read(lock_file) if lock_file else None
        given = read_input(config, store, lock)
        tokenizer = _tokenizer(config, given, lock)
        settings = token_settings(config, given.sources, given.configs, tokenizer)
        if lock:
            check_sources(lock, config.sources, given.sources, file_digests(given.sources, settings))
        mirror = Mirror(store)
        with mirror.locked():
            finished = mirror.refresh()
        if not (finished and mirror.uri):  # others, who read a finished store, write in its copy
            remove_half_written(store)
        if finished:
            return _reopen(mirror, config, given.sources, settings)
        made_with = {"asked": config.asked(), "settings": settings}
        left = find_leftovers(mirror, given.units, made_with)
        engine = _choose_engine(mirror, tokenizer, config, given)
        making = Making(
            store=mirror.uri or str(store.absolute()),
            fingerprint=fingerprint_of(settings),
            tokenizer=folder_digests(store / "tokenizer"),
            template_date=config.template_date,
            learning=Learning.of(config),
            sources=given.configs,
            engine=engine,
            sampled_every=sampled_every(sum(unit.rows for unit in given.units)),
        )
        on_start(left)
        begin(mirror, left, made_with)
        records = _make_shards(mirror, config, making, given.units, on_unit)
        facts = {**made_with, "encoder": engine}
        write_store(mirror, given.sources, given.configs, records, tokenizer, facts)
        return open_store(store)


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


def _reopen(mirror: Mirror, config: DataConfig, sources: list[SourceFiles], settings: dict[str, object]) -> TokenStore:
    """Open a finished store of the same tokens, however the configuration asks for them now."""
    store, allowed = mirror.folder, config.max_reject_fraction
    finished = open_store(store)
    if finished.fingerprint != fingerprint_of(settings):
        check_contents(store, finished.manifest, {"asked": config.asked(), "settings": settings})
    totals = finished.manifest["totals"]
    if totals["rejected"] > allowed * totals["rows_in"]:
        raise UserError(
            f"the token store {store} was made with {totals['rejected']:,} of {totals['rows_in']:,} rows rejected, "
            f"more than data.max_reject_fraction={allowed:g} allows; the reasons are in {finished.file(REJECTS)}"
        )
    finished.verify()
    made = finished.manifest["sources"]
    now = {
        "asked": config.asked(),
        "sources": [{**facts, "configured": source.configured} for facts, source in zip(made, sources, strict=True)],
    }
    if any(finished.manifest[key] != value for key, value in now.items()):
        write_manifest(store, {**finished.manifest, **now})
        mirror.push(MANIFEST)
        finished = open_store(store)
    return finished


def _choose_engine(mirror: Mirror, tokenizer: PreTrainedTokenizerBase, config: DataConfig, given: Input) -> str:
    """Put the tokenizer in place, and choose what encodes."""
    store = mirror.folder
    mirror.remove("tokenizer")
    if (store / "tokenizer").exists():
        shutil.rmtree(store / "tokenizer")  # whatever file of another one stays would be part of this one
    save_tokenizer(tokenizer, store / "tokenizer")
    mirror.push_folder("tokenizer")
    saved = load_tokenizer(str(store / "tokenizer"))
    if tokenizer_digest(saved) != tokenizer_digest(tokenizer):
        raise UserError("data.tokenizer: saved and loaded again it encodes differently; save it with this transformers")
    texts = _first_texts(saved, config, given)  # first: the plain backend adds no token any more
    if not saved.is_fast:
        if config.encoder != "auto":
            raise UserError(f"data.encoder: {config.encoder} cannot encode a SentencePiece model; set it to auto")
        return "sentencepiece"
    return choose_encoder(config.encoder, plain_backend(saved), texts)


def _first_texts(tokenizer: PreTrainedTokenizerBase, config: DataConfig, given: Input) -> list[str]:
    """The first documents of every source, as the model will see them."""
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


def _make_shards(
    mirror: Mirror, config: DataConfig, making: Making, units: list[WorkUnit], on_unit: OnUnit
) -> list[UnitRecord]:
    """Every unit's record, in the order of the units."""
    rows = sum(unit.rows for unit in units)
    actors = config.actors
    if actors == "auto":
        actors = 0 if rows < IN_PROCESS_ROWS else len(units)
    records: list[UnitRecord] = []
    for record in make_on_actors(making, units, actors) if actors else _in_process(making, units):
        on_unit(record, rows)
        records.append(record)
        check_rejects(mirror, records, rows, config.max_reject_fraction)
    return sorted(records, key=lambda record: record.unit)


def _in_process(making: Making, units: list[WorkUnit]) -> Iterator[UnitRecord]:
    maker = DocumentMaker(making)
    for unit in units:
        yield maker.make_shard(unit)
