"""What people see of a store is what is in it: every token once, whole characters, nothing that acts on the screen."""

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, pre_tokenizers
from transformers import LlamaTokenizer

from data_tools.config import DataConfig
from data_tools.decode import BYTE_OF, TokenDecoder
from data_tools.errors import UserError
from data_tools.inspect import inspect_store, length_bins, spread, visible
from data_tools.inspect_page import bin_edges, draw_lengths, write_page
from data_tools.prepare import prepare
from data_tools.store import TokenStore
from data_tools.tokenizer import CHATML
from tests.conftest import chats, write_jsonl
from tests.shown_stores import ACTING, HOSTILE, write_store


@pytest.fixture(scope="session")
def tokenizer(store: TokenStore) -> Tokenizer:
    return Tokenizer.from_file(str(store.folder / "tokenizer" / "tokenizer.json"))


@pytest.fixture(scope="session")
def decoder(store: TokenStore) -> TokenDecoder:
    return TokenDecoder(store.folder / "tokenizer")


class Page(HTMLParser):
    """The elements of a page, and the text of its documents without captions."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.documents: list[str] = []
        self._open: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag in ("article", "pre"):
            self._open.append(tag)
        if self._open == ["article", "pre"] and tag == "pre":
            self.documents.append("")

    def handle_endtag(self, tag: str) -> None:
        if tag in self._open:
            self._open.remove(tag)

    def handle_data(self, data: str) -> None:
        if self._open == ["article", "pre"]:
            self.documents[-1] += data


def test_the_byte_table_is_that_of_the_library() -> None:
    assert set(BYTE_OF) == set(pre_tokenizers.ByteLevel.alphabet())
    assert sorted(BYTE_OF.values()) == list(range(256))


@given(text=st.text())
@settings(deadline=None)
def test_pieces_are_the_text_with_every_id_once(text: str, tokenizer: Tokenizer, decoder: TokenDecoder) -> None:
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    pieces = decoder.pieces(ids)
    assert "".join(piece.text for piece in pieces) == text
    assert [id for piece in pieces for id in piece.ids] == ids


@given(ids=st.lists(st.integers(0, 399)))
@settings(deadline=None)
def test_any_ids_are_decoded_byte_for_byte(ids: list[int], tokenizer: Tokenizer, decoder: TokenDecoder) -> None:
    pieces = decoder.pieces(ids)
    assert "".join(piece.text for piece in pieces) == tokenizer.decode(ids, skip_special_tokens=False)
    assert [id for piece in pieces for id in piece.ids] == ids
    assert {piece.ids[0] for piece in pieces if piece.control} == {0, 1, 2} & set(ids)


def test_an_id_outside_the_vocabulary_is_shown(decoder: TokenDecoder) -> None:
    assert [(piece.text, piece.control) for piece in decoder.pieces([70_000])] == [("<unknown id 70000>", True)]


@pytest.mark.parametrize("name", ["smollm3", "qwen3", "minimind"])
def test_real_vocabularies(name: str, real_data: Path) -> None:
    folder = real_data / "tokenizers" / name
    text = "def f(x):\n\treturn 'naïve  日本語 🏳️‍🌈'<|im_end|>\n<think> x"
    ids = Tokenizer.from_file(str(folder / "tokenizer.json")).encode(text, add_special_tokens=False).ids
    pieces = TokenDecoder(folder).pieces(ids)
    assert "".join(piece.text for piece in pieces) == text
    assert "<|im_end|>" in [piece.text for piece in pieces if piece.control]
    rainbow = next(piece for piece in pieces if "🌈" in piece.text)
    assert rainbow.text.strip("\u200d") == "🌈"


def test_a_sentencepiece_vocabulary_keeps_its_spaces(real_data: Path, tmp_path: Path) -> None:
    """Spaces are `▁` there, and what is in no token is spelt in bytes."""
    tokenizer = LlamaTokenizer.from_pretrained(real_data / "tokenizers" / "mistral_sentencepiece")
    tokenizer.save_pretrained(tmp_path)
    ids = tokenizer.encode("Hello  big\nworld 🌈𓂀", add_special_tokens=False)
    decoder = TokenDecoder(tmp_path)
    assert "".join(piece.text for piece in decoder.pieces(ids)) == " Hello  big\nworld 🌈𓂀"
    cut = decoder.pieces(ids[: len(ids) // 2]) + decoder.pieces(ids[len(ids) // 2 :])
    assert [id for piece in cut for id in piece.ids] == ids


def test_documents_are_decoded_with_their_mask(store: TokenStore) -> None:
    found = inspect_store(store, None, 3)
    assert [document.number for document in found.documents] == [33, 100, 166]
    for document in found.documents:
        answers = [m["content"] for m in chats(200)[document.row]["messages"] if m["role"] == "assistant"]
        assert [run.text for run in document.runs if run.trained] == [answer + "<|im_end|>" for answer in answers]
        ids = [id for run in document.runs for piece in run.pieces for id in piece.ids]
        assert ids == store.document(document.number).input_ids.tolist()
        assert document.trained_tokens == sum(len(p.ids) for run in document.runs if run.trained for p in run.pieces)
    assert len(inspect_store(store, None, 10_000).documents) == 200


def test_a_character_cut_by_the_mask_and_weights(store: TokenStore, tokenizer: Tokenizer, tmp_path: Path) -> None:
    ids = tokenizer.encode("aé\n", add_special_tokens=False).ids
    assert len(ids) == 4
    documents: list[dict[str, Any]] = [
        {"ids": ids, "runs": [2, 2]},
        {"ids": [*ids, 2], "runs": [1, 2, 0, 1, 1], "weights": [0.1, 2.0]},
        {"ids": ids, "runs": [0, 4]},
    ]
    found = inspect_store(write_store(tmp_path / "s", store, documents), None, 3)
    cut, weighted, whole = (document.as_json() for document in found.documents)
    assert cut["segments"] == [["a\ufffd", False], ["\ufffd\n", True]]
    assert weighted["segments"] == [["a", False], ["é", True], ["\n", True], ["<|im_end|>", False]]
    assert weighted["weights"] == [0.1, 2.0]
    assert whole["segments"] == [["aé\n", True]]
    assert "weights" not in cut


@given(length=st.integers(0, 500), count=st.integers(1, 600))
def test_places_are_spread_evenly(length: int, count: int) -> None:
    places = spread(length, count)
    assert len(places) == min(length, count)
    assert len({*places}) == len(places)
    assert all(0 <= place < length for place in places)
    gaps = np.diff([-1, *places]) if places else np.zeros(1)
    assert gaps[1:].size == 0 or gaps[1:].max() - gaps[1:].min() <= 1


@given(st.lists(st.integers(1, 200_000), min_size=1))
def test_every_document_is_in_its_bin(values: list[int]) -> None:
    lengths = np.array(values, np.int32)
    bins = length_bins(lengths)
    assert sum(bin.documents for bin in bins) == len(values)
    for bin in bins:
        assert bin.documents == sum(bin.first <= length <= bin.last for length in values)
        assert bin.share_up_to == pytest.approx(sum(length <= bin.last for length in values) / len(values))
    assert [bin.first for bin in bins[1:]] == [bin.last + 1 for bin in bins[:-1]]


@given(st.lists(st.integers(1, 2**31 - 1), min_size=1))
def test_every_document_is_in_the_picture(values: list[int]) -> None:
    lengths = np.array(values, np.int32)
    edges = bin_edges(lengths)
    assert np.histogram(lengths, edges)[0].sum() == len(values)
    assert (np.diff(edges) > 0).all()


@pytest.mark.parametrize("lengths", [[1], [7], [2048, 2048], [1, 100_000], [3, 2047, 2048, 2049]])
def test_lengths_are_drawn(lengths: list[int]) -> None:
    picture = draw_lengths(np.array(lengths, np.int32)).decode()
    assert picture.count("stroke-dasharray") == sum(2**power <= max(lengths) for power in range(11, 17))
    assert picture == draw_lengths(np.array(lengths, np.int32)).decode()


def test_totals_of_each_source(tmp_path: Path) -> None:
    unanswered = [{"messages": [{"role": "user", "content": "?"}]}] * 5
    one, other = write_jsonl(tmp_path / "one.jsonl", chats(10) + unanswered), tmp_path / "other.jsonl"
    write_jsonl(other, chats(5))
    sources = [{"path": str(one)}, {"path": str(other)}]
    config = {"sources": sources, "tokenizer": {"vocab_size": 400}, "max_reject_fraction": 1, "actors": 0}
    store = prepare(DataConfig.model_validate(config), tmp_path / "tokens")
    found = inspect_store(store, None, 2)
    assert [(s.name, s.rows_in, s.rows_out, s.rejected, s.documents) for s in [*found.sources, found.totals]] == [
        *[("one", 15, 10, 5, 10), ("other", 5, 5, 0, 5)],
        ("together", 20, 15, 5, 15),
    ]
    assert found.totals.tokens == int(store.index["length"].sum())
    assert [reason.count for reason in found.rejects] == [5]
    only = inspect_store(store, "other", 2)
    assert [source.name for source in only.sources] == ["other"]
    assert {document.source for document in only.documents} == {"other"}
    assert len(only.lengths) == only.totals.documents == 5


def test_reasons_that_differ_in_a_number_are_one(store: TokenStore, tmp_path: Path) -> None:
    made = write_store(tmp_path / "s", store, [{"ids": [5, 6], "runs": [1, 1]}])
    reasons = ["no answer", *(f"message {number} has no role" for number in range(4))]
    lines = [{"file": "a.jsonl", "row": n, "kind": "rejected", "reason": text} for n, text in enumerate(reasons)]
    (made.folder / "rejects.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = inspect_store(made, None, 1)
    assert [(reason.count, reason.reason) for reason in found.rejects] == [
        *[(4, "message … has no role"), (1, "no answer")]
    ]
    assert found.rejects[0].examples == lines[1:4]
    write_page(found, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert all(text in page for text in ("message … has no role", "a.jsonl, row 3: message 2 has no role"))


@pytest.mark.parametrize(
    ("settings", "untold"),
    [
        ({}, {}),
        ({"train_on": "all"}, dict.fromkeys(("content", "end_of_turn", "prompt"), "train_on=all learns every token")),
        ({"train_end_of_turn": False}, {"end_of_turn": "train_end_of_turn=false"}),
        (
            {"chat_template": "strict.jinja", "train_headers": True},
            {"prompt": "refuses a conversation that ends with its question"},
        ),
        (
            {"sources": [{"path": "text.jsonl"}]},
            dict.fromkeys(("ids", "prompt"), "no row that was looked at is a chat"),
        ),
    ],
)
def test_a_proof_that_does_not_apply_says_why(
    settings: dict[str, Any], untold: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_jsonl(tmp_path / "chats.jsonl", chats(3))
    write_jsonl(tmp_path / "text.jsonl", [{"text": "Beautiful is better."}] * 3)
    refusing = "{% if messages[-1].role != 'assistant' %}{{ raise_exception('unfinished') }}{% endif %}"
    (tmp_path / "strict.jinja").write_text(refusing + CHATML, encoding="utf-8")
    asked = {"sources": [{"path": "chats.jsonl"}], "tokenizer": {"vocab_size": 300}, "actors": 0, **settings}
    proofs = inspect_store(prepare(DataConfig.model_validate(asked), tmp_path / "tokens"), None, 1).proofs
    assert set(untold) == {name for name, proof in proofs.items() if not proof["checked"]}
    assert set(untold) == {name for name, proof in proofs.items() if "not_applicable" in proof}
    for name, why in untold.items():
        assert why in proofs[name]["not_applicable"]


def test_proofs_are_shown_where_there_are_any(store: TokenStore, tmp_path: Path) -> None:
    assert inspect_store(store, None, 1).as_json()["proofs"]["content"]["checked"] == len(store)
    proofs = {"content": {"checked": 1234, "of": 5678, "text": "every <answer> is in it"}}
    made = write_store(tmp_path / "s", store, [{"ids": [5, 6], "runs": [1, 1]}], proofs=proofs)
    found = inspect_store(made, None, 1)
    assert found.as_json()["proofs"] == proofs
    write_page(found, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<h2>Proofs</h2>" in page
    assert all(text in page for text in ("1,234", "5,678", "every &lt;answer&gt; is in it"))


def test_what_a_document_says_does_nothing_to_a_page(store: TokenStore, tokenizer: Tokenizer, tmp_path: Path) -> None:
    ids = tokenizer.encode(HOSTILE, add_special_tokens=False).ids
    made = write_store(tmp_path / "s", store, [{"ids": ids, "runs": [len(ids) - 1, 1]}], name=HOSTILE)
    reject = {"file": HOSTILE, "row": 0, "kind": "rejected", "reason": HOSTILE}
    (made.folder / "rejects.jsonl").write_text(json.dumps(reject) + "\n", encoding="utf-8")
    found = inspect_store(made, None, 1)
    assert "".join(run.text for run in found.documents[0].runs) == HOSTILE
    write_page(found, tmp_path / "page.html")
    html = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<script" not in html
    assert not re.search(ACTING, html)
    assert Page(html).documents == [visible(HOSTILE)]


@given(st.text())
def test_visible_text_acts_on_nothing(text: str) -> None:
    shown = visible(text)
    assert "\x1b" not in shown
    assert visible(shown) == shown
    if all(char.isprintable() or char in "\n\t" for char in text):
        assert shown == text


def test_the_page_stands_alone_and_names_every_token(store: TokenStore, tmp_path: Path) -> None:
    found = inspect_store(store, None, 2)
    write_page(found, tmp_path / "page.html")
    page = Page((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object"}
    outside = [value for _, attributes in page.tags for key, value in attributes.items() if key in ("src", "href")]
    assert [str(value).partition(",")[0] for value in outside] == ["data:image/svg+xml;base64"]
    for shown, document in zip(page.documents, found.documents, strict=True):
        assert shown.replace("↵", "") == "".join(run.text for run in document.runs)
    ids = [int(id) for tag, attributes in page.tags if tag == "i" and (id := attributes.get("title"))]
    assert ids == [id for d in found.documents for r in d.runs for p in r.pieces for id in p.ids]


def test_mistakes(store: TokenStore, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no source chat; did you mean chats\? \(its sources: chats\)"):
        inspect_store(store, "chat", 5)
    with pytest.raises(UserError, match="--n -1: give the number"):
        inspect_store(store, None, -1)
    with pytest.raises(UserError, match=r"cannot write .*page\.html: No such file or directory"):
        write_page(inspect_store(store, None, 1), tmp_path / "gone" / "page.html")
    with pytest.raises(UserError, match=r"cannot write .*: Is a directory"):
        write_page(inspect_store(store, None, 1), tmp_path)
    copy = tmp_path / "copy"
    shutil.copytree(store.folder, copy)
    (copy / "tokenizer" / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"cannot read .*tokenizer\.json"):
        inspect_store(TokenStore(copy), None, 1)
