"""Encoding word by word is what the tokenizer itself does, on every text, or is refused."""

import re
from collections.abc import Callable
from functools import cache
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, trainers
from tokenizers.pre_tokenizers import ByteLevel, Digits, Metaspace, Punctuation, Sequence, Split

from data_tools import words
from data_tools.tokenizer import load_tokenizer
from data_tools.words import PATTERNS, WordEncoder, Words, word_encoder, word_pattern

LEARNT = [
    "I'm sure they'll say: it's 12 or 1234!!\n\n  She'S   HERE, don't...\r\n\t\tx = (1,\n 22);/\n a/b\x1c\x1c \x0b\x0b"
]
CONTROL = ["<|end|>", "<|end|>>", "<|im_start|>", "｜end｜"]


def split_by(pattern: str, behavior: str = "isolated", invert: bool = False) -> Any:
    return Sequence([Split(Regex(pattern), behavior, invert), ByteLevel(add_prefix_space=False, use_regex=False)])


gpt2 = ByteLevel(add_prefix_space=False)
FORMS: dict[str, Any] = {
    "gpt2": gpt2,
    "digits one by one": Sequence([Digits(individual_digits=True), gpt2]),
    "digits": Sequence([Digits(individual_digits=False), gpt2]),
    "removed": split_by(words.LLAMA3, "removed", invert=True),
    **{f"split {number}": split_by(pattern) for number, pattern in enumerate(sorted(PATTERNS))},
}
"""Every way of cutting that is known."""


def trained(pre_tokenizer: Any, model: models.BPE | None = None, alphabet: bool = True) -> Tokenizer:
    """A small tokenizer whose merges run over white space, digits and punctuation where the cuts allow it."""
    tokenizer = Tokenizer(model or models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer
    letters = ByteLevel.alphabet() if alphabet else []
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=letters, special_tokens=["<unk>"], show_progress=False
    )
    tokenizer.train_from_iterator(LEARNT * 20 + ["Zoë’s café — 日本 e\u0301"] * 20, trainer)
    tokenizer.add_special_tokens(CONTROL)
    return tokenizer


def with_normalizer() -> Tokenizer:
    tokenizer = trained(FORMS["gpt2"])
    tokenizer.normalizer = normalizers.NFC()
    return tokenizer


def normalized_tokens() -> Tokenizer:
    """GPT-2's own control token is of this kind."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = FORMS["gpt2"]
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=ByteLevel.alphabet(), show_progress=False)
    tokenizer.train_from_iterator(LEARNT, trainer)
    tokenizer.add_tokens([AddedToken(token, normalized=True) for token in [*CONTROL, "or", "12"]])
    return tokenizer


MADE: dict[str, Callable[[], Tokenizer]] = {
    **{name: lambda form=form: trained(form) for name, form in FORMS.items()},  # type: ignore[misc]
    "with normalizer": with_normalizer,
    "normalized tokens": normalized_tokens,
    "unknown bytes dropped": lambda: trained(FORMS["gpt2"], alphabet=False),
    "unknown bytes told": lambda: trained(FORMS["gpt2"], models.BPE(unk_token="<unk>", fuse_unk=True), alphabet=False),
    "no merges of whole words": lambda: trained(FORMS["gpt2"], models.BPE(ignore_merges=True)),
}
REAL = ("minimind", "smollm2", "smollm3", "qwen3")


@cache
def made(name: str) -> tuple[Tokenizer, WordEncoder]:
    """A tokenizer, and one encoder for all examples, which remembers the words of those before."""
    return (backend := MADE[name]()), _encoder(backend)


def _encoder(backend: Tokenizer) -> WordEncoder:
    encoder = word_encoder(backend)
    assert encoder is not None
    return encoder


def _real(real_data: Path, name: str) -> Tokenizer:
    backend: Tokenizer = load_tokenizer(str(real_data / "tokenizers" / name), "chatml").backend_tokenizer
    backend.no_truncation()
    return backend


white = st.text(" \n\r\t\x0b\x0c\x1c\x1f\x85\xa0\u2028", max_size=4)
foreign = ["é", "e\u0301", "’", "日本", "ſ", "\u212a", "٣", "½", "ǅ", "🙂", "\u0301", "\u200d"]
usual = ["'s", "'LL", "don't", "12", "1234", "a", "word", "Word", "AI's", "!!", "_", ".", "<|end|"]
other = st.sampled_from([*foreign, *usual, *CONTROL, "<|im_start|>user\n", "/\n", "\0", "\x7f"])
texts = st.lists(st.one_of(white, other, st.characters(max_codepoint=127)), max_size=14).map("".join)


def _same(backend: Tokenizer, encoder: WordEncoder, batch: list[str]) -> None:
    ids, offsets = encoder.encode(batch)
    each = [ids[start:end].tolist() for start, end in pairwise(offsets)]
    assert each == [backend.encode(text, add_special_tokens=False).ids for text in batch]
    assert ids.dtype == np.int32


@pytest.mark.parametrize("name", MADE)
def test_any_text_becomes_what_the_tokenizer_makes_of_it(name: str) -> None:
    @settings(max_examples=150, derandomize=True)
    @given(st.lists(texts, max_size=3))
    def check(batch: list[str]) -> None:
        _same(*made(name), batch)

    check()


@pytest.mark.parametrize("name", REAL)
def test_any_text_becomes_what_real_tokenizers_make_of_it(name: str, real_data: Path) -> None:
    backend = _real(real_data, name)
    encoder, known = (
        _encoder(backend),
        st.sampled_from([t.content for t in backend.get_added_tokens_decoder().values()]),
    )

    @settings(max_examples=150, derandomize=True)
    @given(st.lists(st.one_of(texts, known), max_size=4).map("".join))
    def check(text: str) -> None:
        _same(backend, encoder, [text])

    check()


@pytest.mark.parametrize("name", REAL)
def test_real_texts(name: str, real_data: Path) -> None:
    files = sorted((real_data / "smoltalk2_mini" / "SFT").glob("*.parquet"))
    rows = [row for file in files for row in pq.read_table(file).slice(0, 3).to_pylist()]
    batch = [message["content"][:20_000] for row in rows for message in row["messages"]]
    assert len(batch) > 150
    backend = _real(real_data, name)
    _same(backend, _encoder(backend), batch)


@pytest.mark.parametrize("form", FORMS)
def test_every_pair_and_odd_triples_of_ascii_are_cut_alike(form: str) -> None:
    backend = trained(FORMS[form])
    cut = re.compile(str(word_pattern(backend))).findall
    pairs = map("".join, product(map(chr, range(128)), repeat=2))
    triples = map("".join, product(" \n\r\t\x0b\x1c'sLl1a!/", repeat=3))
    for text in (*pairs, *triples):
        theirs = [text[start:end] for _, (start, end) in backend.pre_tokenizer.pre_tokenize_str(text)]
        assert cut(text) == theirs, repr(text)


@pytest.mark.parametrize("form", FORMS)
def test_white_space_after_a_letter_or_digit_begins_a_word(form: str) -> None:
    @settings(max_examples=150, derandomize=True)
    @given(texts)
    def check(text: str) -> None:
        starts = {start for _, (start, _) in FORMS[form].pre_tokenize_str(text)}
        assert starts >= {found.end() for found in re.finditer(r"[A-Za-z0-9](?=[\t-\r ])", text)}

    check()


def test_memory_is_bounded_and_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = trained(FORMS["gpt2"])
    everything = Words(backend.model)
    ids = [everything[word] for word in map(str, range(50))]
    monkeypatch.setattr("data_tools.words.WORDS", 8)
    few = Words(backend.model)
    for _ in range(2):
        assert [few[word] for word in map(str, range(50))] == ids
        assert 0 < len(few) <= 8
    long = "x" * (words.LONGEST + 1)
    assert few[long] == np.array(backend.encode(long).ids, np.int32).tobytes()
    assert long not in few
    batch = [" ".join(map(str, range(start, start + 40))) for start in range(0, 400, 20)]
    _same(backend, _encoder(backend), batch * 2)


def test_a_character_without_ids_is_not_mistaken_for_a_byte() -> None:
    """The vocabulary has the byte 0xE9, which is written é, and not the two bytes of é."""
    backend = Tokenizer(models.BPE({"é": 0, "a": 1}, []))
    backend.pre_tokenizer = gpt2
    _same(backend, _encoder(backend), ["é", "aé a é", "鱼 a"])
    assert backend.encode("é").ids == []
    assert backend.encode("鱼").ids == [0]


def _with(token: AddedToken) -> Tokenizer:
    tokenizer = trained(FORMS["gpt2"])
    tokenizer.add_tokens([token])
    return tokenizer


def _composed_tokens() -> Tokenizer:
    tokenizer = normalized_tokens()
    tokenizer.normalizer = normalizers.NFC()
    return tokenizer


def _lowercase() -> Tokenizer:
    tokenizer = trained(FORMS["gpt2"])
    tokenizer.normalizer = normalizers.Lowercase()
    return tokenizer


@pytest.mark.parametrize(
    "make",
    [
        lambda: trained(ByteLevel(add_prefix_space=True)),
        lambda: trained(ByteLevel(add_prefix_space=False, use_regex=False)),
        lambda: trained(Sequence([Punctuation(), gpt2])),
        lambda: trained(Sequence([Digits(individual_digits=True), Punctuation(), gpt2])),
        lambda: trained(Metaspace()),
        lambda: trained(split_by(r"\p{L}+|\s+")),
        lambda: trained(split_by(words.LLAMA3, "removed")),
        lambda: trained(split_by(words.LLAMA3, "merged_with_previous")),
        lambda: trained(Sequence([Split(" ", "isolated"), ByteLevel(add_prefix_space=False, use_regex=False)])),
        lambda: trained(gpt2, models.BPE(dropout=0.5)),
        lambda: _with(AddedToken("<tool>", lstrip=True)),
        lambda: _with(AddedToken("<tool>", rstrip=True)),
        lambda: _with(AddedToken("<tool>", single_word=True)),
        lambda: _with(AddedToken("<tool>", normalized=True)),
        _composed_tokens,
        _lowercase,
    ],
)
def test_what_is_not_known_to_be_the_same_is_refused(make: Callable[[], Tokenizer]) -> None:
    assert word_encoder(make()) is None
