"""Tokenizers that are nothing but a SentencePiece model: the ids are those of transformers over sentencepiece."""

import json
import shutil
import tempfile
from collections.abc import Callable
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer
from transformers import AddedToken, AutoTokenizer, SentencePieceBackend

from data_tools.chat_text import RenderedChat
from data_tools.config import DataConfig
from data_tools.decode import TokenDecoder
from data_tools.encode import Encoder
from data_tools.errors import UserError
from data_tools.inspect import inspect_store
from data_tools.piece_models import PROBES, find_piece_model, load_piece_tokenizer, same_ids, save_tokenizer
from data_tools.pinned import files_of_folder
from data_tools.prepare import prepare
from data_tools.template_choice import CHATML, check_template_tokens
from data_tools.tokenization_sentencepiece import SentencePieceTokenizer
from data_tools.tokenizer import add_special_tokens, load_tokenizer, tokenizer_digest, vocabulary_size
from data_tools.tokens import Tokens
from tests.conftest import write_jsonl

MISTRAL = """\
{{- bos_token -}}
{%- for message in messages -%}
{%- if message.role == 'user' -%}{{- '[INST] ' + message.content + '[/INST]' -}}
{%- else -%}{% generation %}{{- ' ' + message.content + eos_token -}}{% endgeneration %}{%- endif -%}
{%- endfor -%}
"""


@cache
def load(model: Path) -> SentencePieceTokenizer:
    return load_piece_tokenizer(str(model), model)


def trained(folder: Path, **options: Any) -> Path:
    """A small model of some English, Greek and digits."""
    sentences = ["Hello there, how are you?", "I am fine, thank you.", "Ελλάδα 1 2 3 4", "<tool> x  y"] * 20
    options = {"vocab_size": 320, "hard_vocab_limit": False, "normalization_rule_name": "identity", **options}
    prefix = folder / "tokenizer"
    SentencePieceTrainer.train(
        sentence_iterator=iter(sentences), model_prefix=str(prefix), minloglevel=2, num_threads=1, **options
    )
    return prefix.with_suffix(".model")


BYTES: dict[str, Any] = {"model_type": "bpe", "byte_fallback": True, "remove_extra_whitespaces": False}
KINDS: dict[str, Callable[[Path, Path], Path]] = {
    "mistral": lambda real, made: real / "tokenizers" / "mistral_sentencepiece" / "tokenizer.model",
    "unigram": lambda real, made: real / "tokenizers" / "sentencepiece_test.model",
    "no_prefix": lambda real, made: trained(made, **BYTES, add_dummy_prefix=False),
    "unknown_characters": lambda real, made: trained(
        made, model_type="unigram", vocab_size=60, remove_extra_whitespaces=False, user_defined_symbols=["<tool>", "  "]
    ),
    "suffix": lambda real, made: trained(made, **BYTES, treat_whitespace_as_suffix=True),
}


@pytest.fixture(scope="session")
def model_of(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Every kind of model that there is."""
    return cache(lambda kind: KINDS[kind](real_data, tmp_path_factory.mktemp(kind)))


PIECES = st.sampled_from(
    [
        "Hello",
        " ",
        "  ",
        "\n",
        "é",
        "é",
        "日本",
        "ﬁ",
        "㍍",
        "🙂",
        "</s>",
        " </s> ",
        "<s>",
        "<unk>",
        "＜s＞",
        "▁",
        "[INST]",
        "<tool>",
        "<|im_end|>",
        "\x00",
        "\xa0",
        "\t",
    ]
)
TEXTS = st.lists(st.one_of(PIECES, st.text(max_size=3)), max_size=8).map("".join)


@st.composite
def chats(draw: st.DrawFn) -> RenderedChat:
    text = draw(TEXTS)
    places = sorted(draw(st.lists(st.integers(0, len(text)), max_size=4)))
    borders = [len(text[:place].encode()) for place in places[: len(places) // 2 * 2]]
    pairs = list(zip(borders[::2], borders[1::2], strict=True))
    literals = tuple(dict.fromkeys(pairs)) if draw(st.booleans()) else ()
    literals = tuple(
        pair for number, pair in enumerate(literals) if pair[0] < pair[1] and (number == 0 or literals[0][1] <= pair[0])
    )
    return RenderedChat(text.encode(), pairs, literals=literals)


@pytest.mark.parametrize("stripping", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_any_batch_is_what_transformers_and_the_offsets_say(
    kind: str, stripping: bool, model_of: Callable[[str], Path]
) -> None:
    model = model_of(kind)
    tokenizer = load_piece_tokenizer(str(model), model)
    if stripping:
        tokenizer.add_tokens([AddedToken("<|im_end|>", lstrip=True, rstrip=True, special=True), AddedToken("llo")])
    encoder = Encoder(tokenizer)

    @settings(max_examples=40, deadline=None, derandomize=True)
    @given(st.lists(st.one_of(chats(), st.just(Tokens([3, 4, 3], [False, True, True]))), max_size=4))
    def check(items: list[RenderedChat | Tokens]) -> None:
        documents = encoder.encode(items)
        assert len(documents) == len(items)
        for number, item in enumerate(items):
            ids = documents.ids[documents.offsets[number] : documents.offsets[number + 1]].tolist()
            mask = documents.mask(number).tolist()
            slow_ids, slow_mask = encoder.encode_alone(item)
            assert (ids, mask) == (slow_ids.tolist(), slow_mask.tolist())
            if isinstance(item, RenderedChat) and not item.literals:
                assert ids == tokenizer(item.text.decode(), add_special_tokens=False)["input_ids"]

    check()


@pytest.mark.parametrize("kind", ["mistral", "unigram"])
def test_text_without_control_tokens_has_the_ids_of_sentencepiece(kind: str, model_of: Callable[[str], Path]) -> None:
    model = SentencePieceProcessor(model_file=str(model_of(kind)))
    documents = Encoder(load(model_of(kind))).encode([RenderedChat(text.encode(), []) for text in PROBES])
    assert documents.ids.tolist() == [id for text in PROBES for id in model.encode(text)]


@pytest.mark.parametrize(
    ("text", "learnt", "pieces"),
    [
        ("[INST]Hi[/INST]é日㍍</s>\n", "é日㍍</s>", ["▁é", "日", "<0xE3>", "<0x8D>", "<0x8D>", "</s>"]),
        ("[INST]Hi[/INST]日", "日", ["▁", "日"]),  # the space that is put before a text belongs to it
        ("[INST]Hi[/INST] 日", "日", ["日"]),
        ("a\nb</s>\n", "\nb</s>", ["<0x0A>", "b", "</s>"]),
        ("▁日[/INST]日", "日", ["▁", "日"]),  # by offsets
    ],
)
def test_what_is_learnt(text: str, learnt: str, pieces: list[str], model_of: Callable[[str], Path]) -> None:
    tokenizer = load(model_of("mistral"))
    start = len(text[: text.rindex(learnt)].encode())
    documents = Encoder(tokenizer).encode([RenderedChat(text.encode(), [(start, start + len(learnt.encode()))])])
    tokens = tokenizer.convert_ids_to_tokens(documents.ids.tolist())
    assert [token for token, trained in zip(tokens, documents.mask(0), strict=True) if trained] == pieces


def test_control_tokens_that_stay_text(model_of: Callable[[str], Path]) -> None:
    encoder = Encoder(tokenizer := load(model_of("mistral")))
    text = b"Hello </s> x</s>"
    literal = encoder.encode([RenderedChat(text, [], literals=((6, 10),))]).ids.tolist()
    plain = encoder.encode([RenderedChat(text, [])]).ids.tolist()
    assert (literal.count(tokenizer.eos_token_id), plain.count(tokenizer.eos_token_id)) == (1, 2)


@pytest.mark.parametrize(
    ("kind", "model_type"),
    [("mistral", "mistral"), *(("unigram", name) for name in (None, "llama", "mistral", "phi3", "qwen2", "granite"))],
)
def test_plain_transformers_loads_what_is_saved(
    kind: str, model_type: str | None, model_of: Callable[[str], Path], tmp_path: Path
) -> None:
    """Beside models for which transformers takes another class, whatever the folder says."""
    tokenizer = load(model_of(kind))
    save_tokenizer(tokenizer, tmp_path)
    if model_type:
        (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert type(again) is SentencePieceBackend
    assert same_ids(again, tokenizer, [*PROBES, "</s> x</s>\n", "[INST] Hi[/INST]"])
    ours = load_piece_tokenizer(str(tmp_path), tmp_path / "tokenizer.model")
    assert tokenizer_digest(ours) == tokenizer_digest(tokenizer)


def test_text_comes_back(model_of: Callable[[str], Path], tmp_path: Path) -> None:
    tokenizer = load(model_of("mistral"))
    save_tokenizer(tokenizer, tmp_path)
    decoder = TokenDecoder(tmp_path)
    for text in PROBES:
        if "▁" in text:
            continue
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.decode(ids) == text
        assert "".join(piece.text for piece in decoder.pieces(ids)) == " " + text
    assert tokenizer.decode(tokenizer("</s>\nHi 🙂[INST]x")["input_ids"]) == "</s>\nHi 🙂[INST]x"
    assert [piece.control for piece in decoder.pieces([2, 16127])] == [True, False]


def test_settings_beside_the_model(model_of: Callable[[str], Path], tmp_path: Path) -> None:
    shutil.copy(model_of("mistral"), tmp_path / "spiece.model")
    config = tmp_path / "tokenizer_config.json"
    asked = {"add_bos_token": True, "extra_special_tokens": ["<|im_start|>", "<|im_end|>"], "pad_token": "</s>"}
    config.write_text(json.dumps(asked))
    tokenizer = load_tokenizer(str(tmp_path), "chatml")
    assert (tokenizer.pad_token, tokenizer.chat_template) == ("</s>", CHATML)
    assert tokenizer("<|im_start|>x")["input_ids"] == [1, 32768, 2086]
    assert vocabulary_size(tokenizer) == 32770
    save_tokenizer(tokenizer, tmp_path / "saved")
    saved = load_tokenizer(str(tmp_path / "saved"))
    assert saved("<|im_start|>x")["input_ids"] == [1, 32768, 2086]
    assert tokenizer_digest(saved) == tokenizer_digest(tokenizer)
    save_tokenizer(saved, tmp_path / "again")
    assert AutoTokenizer.from_pretrained(tmp_path / "again")("<|im_start|>x")["input_ids"] == [1, 32768, 2086]
    config.write_text(json.dumps({"sp_model_kwargs": {"enable_sampling": True}}))
    with pytest.raises(UserError, match=r"sp_model_kwargs .* remove it"):
        load_tokenizer(str(tmp_path), "chatml")


def test_chatml_needs_its_tokens(model_of: Callable[[str], Path]) -> None:
    tokenizer = load_tokenizer(str(model_of("mistral")), "chatml")
    with pytest.raises(
        UserError, match=r"<\|im_start\|>, <\|im_end\|>, which the vocabulary lacks; set data.special_tok"
    ):
        check_template_tokens(tokenizer, "chatml")
    add_special_tokens(tokenizer, ["<|im_start|>", "<|im_end|>"])
    check_template_tokens(tokenizer, "chatml")
    assert tokenizer("<|im_start|>x", add_special_tokens=False)["input_ids"] == [32768, 2086]


@pytest.mark.parametrize(
    ("kind", "declared", "used"),
    [
        ("mistral", {"tokenizer_class": "LlamaTokenizer"}, "SentencePieceTokenizer"),
        ("no_prefix", {"tokenizer_class": "GemmaTokenizer"}, "GemmaTokenizer"),
        ("unigram", {"tokenizer_class": "LlamaTokenizer"}, "SentencePieceTokenizer"),
        ("unigram", {"tokenizer_class": "XLMRobertaTokenizer"}, "XLMRobertaTokenizer"),  # with numbers of its own
    ],
)
def test_a_fast_form_is_used_where_it_agrees(
    kind: str, declared: dict[str, object], used: str, model_of: Callable[[str], Path], tmp_path: Path
) -> None:
    shutil.copy(model_of(kind), tmp_path / "tokenizer.model")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**declared, "chat_template": "x"}))
    tokenizer = load_tokenizer(str(tmp_path), texts=["How are you?"])
    assert type(tokenizer).__name__ == used


@pytest.mark.parametrize("named", [{"tokenizer_class": "LlamaTokenizer"}, {}])
def test_no_form_that_is_asked_for_agrees(
    named: dict[str, str], model_of: Callable[[str], Path], tmp_path: Path
) -> None:
    shutil.copy(model_of("unigram"), tmp_path / "tokenizer.model")
    declared = {**named, "legacy": False, "chat_template": "x"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(declared))
    with pytest.raises(UserError, match="legacy: false"):
        load_tokenizer(str(tmp_path))


def test_which_file_is_the_model(model_of: Callable[[str], Path], tmp_path: Path) -> None:
    model = model_of("unigram")
    assert find_piece_model(str(model)) == model
    assert find_piece_model(str(tmp_path)) is None
    (tmp_path / "tokenizer.model").write_text("IQ== 0\nIg== 1\n")  # of tiktoken
    assert find_piece_model(str(tmp_path)) is None
    for name in ("first.model", "second.model"):
        shutil.copy(model, tmp_path / name)
    (tmp_path / "tokenizer.model").unlink()
    with pytest.raises(UserError, match=r"first\.model and second\.model; give the path of one"):
        find_piece_model(str(tmp_path))
    shutil.copy(model, tmp_path / "tokenizer.model")
    assert find_piece_model(str(tmp_path)) == tmp_path / "tokenizer.model"
    (tmp_path / "tokenizer.json").write_text("{}")
    assert find_piece_model(str(tmp_path)) is None
    assert files_of_folder("tokenizer", model) == {model.name: model}


def _gsm8k(real_data: Path, folder: Path, tokenizer: Path, **more: object) -> DataConfig:
    lines = (real_data / "datasets" / "gsm8k" / "train.jsonl").open(encoding="utf-8")
    rows = [json.loads(line) for line in islice(lines, 120)]
    (folder / "mistral.jinja").write_text(MISTRAL)
    columns = {"user": "{question} ▁ 日本 <unk>", "assistant": "{answer}"}
    source = {"path": str(write_jsonl(folder / "rows.jsonl", rows)), "columns": columns}
    values = {"sources": [source], "tokenizer": str(tokenizer), "chat_template": str(folder / "mistral.jinja"), **more}
    return DataConfig.model_validate(values)


@pytest.mark.parametrize("kind", ["mistral", "unigram"])
def test_gsm8k_is_prepared_and_inspected(
    kind: str, real_data: Path, model_of: Callable[[str], Path], tmp_path: Path
) -> None:
    config = _gsm8k(real_data, tmp_path, model_of(kind))
    store = prepare(config, tmp_path / "tokens")
    assert store.manifest["encoder"] == "sentencepiece"
    assert store.manifest["totals"]["documents"] == 120
    assert store.manifest["proofs"]["ids"]["checked"] > 100
    tokenizer = AutoTokenizer.from_pretrained(store.folder / "tokenizer")
    row = json.loads((tmp_path / "rows.jsonl").read_text().splitlines()[7])
    messages = [
        {"role": "user", "content": f"{row['question']} ▁ 日本 <unk>"},
        {"role": "assistant", "content": row["answer"]},
    ]
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    shown = store.document(7)
    assert shown.input_ids.tolist() == tokenizer(text, add_special_tokens=False)["input_ids"]
    runs = inspect_store(store, None, 120).documents[7].runs
    learnt = "".join(piece.text for run in runs if run.trained for piece in run.pieces)
    expected = f" {row['answer']}</s>"
    assert learnt.replace(" ", "") == expected.replace(" ", "") or kind == "unigram"  # which knows no line break
    assert prepare(config, tmp_path / "tokens").fingerprint == store.fingerprint


def test_other_encoders_are_refused(real_data: Path, model_of: Callable[[str], Path], tmp_path: Path) -> None:
    config = _gsm8k(real_data, tmp_path, model_of("unigram"), encoder="tokenizers")
    with pytest.raises(UserError, match=r"data\.encoder: tokenizers cannot encode a SentencePiece model"):
        prepare(config, tmp_path / "tokens")


@given(
    st.lists(st.tuples(st.text("ab ▁é", max_size=8), st.text("ab ▁é", min_size=1, max_size=8)), min_size=2, max_size=6)
)
def test_texts_of_a_batch_have_the_masks_that_they_have_alone(parts: list[tuple[str, str]]) -> None:
    """`▁` in a text is what the model writes for a space: such a text has more bytes than its tokens."""
    encoder = Encoder(load(_english()))
    chats = [
        RenderedChat((asked + said).encode(), [(len(asked.encode()), len((asked + said).encode()))])
        for asked, said in parts
    ]
    together = encoder.encode(chats)
    for number, chat in enumerate(chats):
        ids, mask = encoder.encode_alone(chat)
        assert together.ids[together.offsets[number] : together.offsets[number + 1]].tolist() == ids.tolist()
        assert together.mask(number).tolist() == mask.tolist()


@cache
def _english() -> Path:
    return trained(Path(tempfile.mkdtemp()), vocab_size=600, byte_fallback=True, remove_extra_whitespaces=False)
