"""Whatever encodes, the ids and masks are those of the tokenizer itself: every kind of tokenizer × any text."""

from collections.abc import Callable
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from data_tools.backends import choose_encoder, load_gigatoken, plain_backend, token_lengths
from data_tools.chat_text import RenderedChat
from data_tools.encode import Encoder
from data_tools.errors import UserError
from data_tools.tokenizer import load_tokenizer, train_tokenizer
from data_tools.tokens import Tokens

SPECIAL = ["<unk>", "<s>", "</s>"]
TEXTS = ["Hello there, how are you? é 日本", "I am fine, thank you."] * 50


def byte_level() -> PreTrainedTokenizerBase:
    return train_tokenizer(iter(TEXTS), 320)


def prefix_space() -> PreTrainedTokenizerBase:
    """Writes a space before every text, as RoBERTa's tokenizer may."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        TEXTS, trainers.BpeTrainer(vocab_size=320, special_tokens=SPECIAL, initial_alphabet=alphabet)
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>")


def stripping_tokens() -> PreTrainedTokenizerBase:
    """Control tokens that take the white space beside them away."""
    tokenizer = train_tokenizer(iter(TEXTS), 320)
    tokenizer.add_tokens([AddedToken("</s>", lstrip=True, rstrip=True, special=True)], special_tokens=True)
    return tokenizer


def tokens_between_words() -> PreTrainedTokenizerBase:
    """An added token that is none inside a word."""
    tokenizer = train_tokenizer(iter(TEXTS), 320)
    tokenizer.add_tokens([AddedToken("<tool>", single_word=True), AddedToken("x", normalized=True)])
    return tokenizer


def composing() -> PreTrainedTokenizerBase:
    """Normalizes to NFC, as Qwen's tokenizers do."""
    tokenizer = train_tokenizer(iter(TEXTS), 320)
    tokenizer.backend_tokenizer.normalizer = normalizers.NFC()
    return tokenizer


def sentencepiece() -> PreTrainedTokenizerBase:
    """Spaces are `▁` and unknown characters bytes, as in Llama 2's tokenizer."""
    vocabulary = {token: number for number, token in enumerate([*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))])}
    for token in ("▁", "H", "e", "l", "o", "i", "t", "h", "r", "▁H", "lo", "▁Hello", "el", "▁He", "l" * 2, "llo"):
        vocabulary.setdefault(token, len(vocabulary))
    merges = [("▁", "H"), ("▁H", "e"), ("l", "l"), ("ll", "o"), ("l", "o"), ("e", "l")]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens(SPECIAL)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", unk_token="<unk>")


def words() -> PreTrainedTokenizerBase:
    """No bytes at all: whole words in lower case, or unknown."""
    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0, "<s>": 1, "</s>": 2, "hello": 3, "x": 4}, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"\s+"), "removed")
    tokenizer.add_special_tokens(SPECIAL)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>")


KINDS: dict[str, Callable[[], PreTrainedTokenizerBase]] = {
    each.__name__: each
    for each in (byte_level, prefix_space, stripping_tokens, tokens_between_words, composing, sentencepiece, words)
}


@cache
def made(kind: str) -> tuple[PreTrainedTokenizerBase, list[Encoder]]:
    """A tokenizer of a kind as it is, and the encoders that can be used with it."""
    engines = ["tokenizers"]
    if load_gigatoken(plain_backend(KINDS[kind]())) and token_lengths(plain_backend(KINDS[kind]())) is not None:
        engines.append("gigatoken")
    return KINDS[kind](), [Encoder(KINDS[kind](), engine) for engine in engines]


pieces = st.sampled_from(
    [
        "Hello",
        " ",
        "  ",
        "\n",
        "é",
        "e\u0301",
        "日本",
        "\u1100\u1161",
        "ﬁ",
        "🙂",
        "</s>",
        " </s> ",
        "<tool>",
        "x",
        "<|im_end|>",
    ]
)
texts = st.lists(st.one_of(pieces, st.text(max_size=3)), max_size=8).map("".join)


@st.composite
def chats(draw: st.DrawFn) -> RenderedChat:
    text = draw(texts)
    borders = sorted({draw(st.integers(0, len(text))) for _ in range(draw(st.sampled_from([0, 2, 4])))})
    borders = [len(text[:border].encode()) for border in borders[: len(borders) // 2 * 2]]
    return RenderedChat(text.encode(), list(zip(borders[::2], borders[1::2], strict=True)))


TOKENS = Tokens([3, 4, 3], [False, True, True])


@pytest.mark.parametrize("kind", KINDS)
def test_any_batch_is_what_the_tokenizer_makes_of_each_text(kind: str) -> None:
    tokenizer, encoders = made(kind)

    @settings(max_examples=40, deadline=None, derandomize=True)
    @given(st.lists(st.one_of(chats(), st.just(TOKENS)), max_size=5))
    def check(items: list[RenderedChat | Tokens]) -> None:
        for encoder in encoders:
            documents = encoder.encode(items)
            assert len(documents) == len(items)
            for number, item in enumerate(items):
                ids = documents.ids[documents.offsets[number] : documents.offsets[number + 1]].tolist()
                mask = documents.mask(number).tolist()
                slow_ids, slow_mask = encoder.encode_alone(item)
                assert (ids, mask) == (slow_ids.tolist(), slow_mask.tolist())
                if isinstance(item, Tokens):
                    assert (ids, mask) == (item.input_ids, item.trained)
                    continue
                expected = tokenizer(item.text.decode(), add_special_tokens=False, return_offsets_mapping=False)
                assert ids == expected["input_ids"]
                assert documents.trained[number] == sum(mask[1:])
                assert any(mask) or not item.spans or not ids or _only_space(item)

    check()


CONTROLLED = [kind for kind in sorted(KINDS) if kind != "words" and "</s>" in made(kind)[0].all_special_tokens]
"""Kinds with this control token; among `words` it would be a word as well."""


def _only_space(chat: RenderedChat) -> bool:
    """Whether what is learnt may be no token: white space that a control token or the splitting takes away."""
    return all(not learnt.strip() for learnt in chat.learnt())


@pytest.mark.parametrize("kind", CONTROLLED)
def test_control_tokens_that_stay_text_never_become_their_ids(kind: str) -> None:
    tokenizer, (encoder, *_) = made(kind)
    text, token = b"Hello </s> x</s>", tokenizer.convert_tokens_to_ids("</s>")
    literal = RenderedChat(text, [(6, 16)], literals=((6, 10),))
    plain = RenderedChat(text, [(6, 16)])
    documents = encoder.encode([literal, plain, literal])
    first, second, third = (documents.ids[a:b].tolist() for a, b in pairwise(documents.offsets))
    assert first == third
    assert (first.count(token), second.count(token)) == (1, 2)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("engine", [0, -1])
def test_nothing_at_all(kind: str, engine: int) -> None:
    encoder = made(kind)[1][engine]
    empty = encoder.encode([])
    assert (len(empty), len(empty.ids), empty.offsets.tolist(), len(empty.digests())) == (0, 0, [0], 0)
    blank = encoder.encode([RenderedChat(b"", []), RenderedChat(b"x", []), Tokens([], [])])
    assert blank.trained.tolist() == [0, 0, 0]
    assert blank.weight.tolist() == [0, 0, 0]
    assert [blank.mask(number).tolist() for number in (0, 2)] == [[], []]


def test_qwen3_composes_characters(real_data: Path) -> None:
    tokenizer = load_tokenizer(str(real_data / "tokenizers" / "qwen3"))
    text = "Cafe\u0301 e\u0301 \u1100\u1161<|im_end|>"
    expected = tokenizer(text, add_special_tokens=False)["input_ids"]
    for engine in ("tokenizers", "gigatoken"):
        documents = Encoder(tokenizer, engine).encode(
            [RenderedChat(b"Hi", [(0, 2)]), RenderedChat(text.encode(), [(0, 6)])]
        )
        assert documents.ids[documents.offsets[1] :].tolist() == expected
        learnt = [token for token, trained in zip(expected, documents.mask(1), strict=True) if trained]
        assert tokenizer.decode(learnt) == "Café"


def test_the_fast_encoder_is_chosen_where_it_agrees() -> None:
    backend = plain_backend(byte_level())
    assert choose_encoder("auto", backend, ["Hello"]) == "gigatoken"
    assert choose_encoder("tokenizers", backend, ["Hello"]) == "tokenizers"
    assert choose_encoder("auto", plain_backend(sentencepiece()), ["Hello"]) == "tokenizers"
    with pytest.raises(UserError, match=r"gigatoken .* set it to auto"):
        choose_encoder("gigatoken", plain_backend(words()), ["Hello"])


def test_bytes_of_one_character_are_learnt_together() -> None:
    """A tokenizer that begins texts by a space and writes unknown characters as bytes."""
    tokenizer, (encoder,) = made("sentencepiece")
    documents = encoder.encode([RenderedChat("Hello é日 Hello</s>".encode(), [(6, 8), (12, 21)])])
    tokens = tokenizer.convert_ids_to_tokens(documents.ids.tolist())
    learnt = [token for token, trained in zip(tokens, documents.mask(0), strict=True) if trained]
    assert learnt == ["<0xC3>", "<0xA9>", "▁He", "llo", "</s>"]
