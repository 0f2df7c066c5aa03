"""Plain text begins and ends as the tokenizer says; templates come from where they are asked for."""

import json
import re
from pathlib import Path

import pytest
from tokenizers import processors
from transformers import PreTrainedTokenizerFast

from data_tools.errors import RowError, UserError
from data_tools.formats import PlainText
from data_tools.template_choice import CHATML, check_template_tokens, choose_template
from data_tools.tokenizer import (
    PlainTextFrame,
    add_special_tokens,
    control_tokens,
    load_tokenizer,
    tokenizer_digest,
    train_tokenizer,
    vocabulary_size,
)

ENDS = train_tokenizer(iter(["Hello there."] * 9), 300)


def tokenizer_that_begins() -> PreTrainedTokenizerFast:
    """Adds a first token to every text, as Llama's tokenizer does."""
    tokenizer = train_tokenizer(iter(["Hello there."] * 9), 300)
    tokenizer.bos_token = "<|im_start|>"
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|im_start|> $A", pair="$A $B", special_tokens=[("<|im_start|>", 1)]
    )
    return tokenizer


BEGINS = tokenizer_that_begins()


@pytest.mark.parametrize(
    ("tokenizer", "prompt", "completion", "text", "learnt"),
    [
        (ENDS, "", "Hello", "Hello<|im_end|>", "Hello<|im_end|>"),
        (ENDS, "Say", " Hello", "Say Hello<|im_end|>", " Hello<|im_end|>"),
        (ENDS, "Say", " Hello<|im_end|>", "Say Hello<|im_end|>", " Hello<|im_end|>"),
        (ENDS, "Say", "", "Say<|im_end|>", "<|im_end|>"),
        (ENDS, "é", "日", "é日<|im_end|>", "日<|im_end|>"),
        (BEGINS, "", "Hello", "<|im_start|>Hello<|im_end|>", "Hello<|im_end|>"),
        (BEGINS, "Say", " Hello", "<|im_start|>Say Hello<|im_end|>", " Hello<|im_end|>"),
        (BEGINS, "<|im_start|>Say", " Hello", "<|im_start|>Say Hello<|im_end|>", " Hello<|im_end|>"),
        (BEGINS, "", "<|im_start|>Hello", "<|im_start|>Hello<|im_end|>", "<|im_start|>Hello<|im_end|>"),
    ],
)
def test_plain_text_begins_and_ends_once(
    tokenizer: PreTrainedTokenizerFast, prompt: str, completion: str, text: str, learnt: str
) -> None:
    frame = PlainTextFrame(tokenizer)
    chat = frame.render(PlainText(prompt, completion), everything=False)
    assert (chat.text.decode(), chat.learnt()) == (text, [learnt])
    assert frame.render(PlainText(prompt, completion), everything=True).learnt() == [text]


@pytest.mark.parametrize(
    ("prompt", "completion", "learnt"),
    [
        ("", "Hello", ["Hello"]),
        ("Say", " é", [" é"]),
        ("Say", " Hello<|im_end|>", [" Hello"]),
        ("Say", "", []),
        ("", "<|im_end|>", []),
    ],
)
def test_the_end_of_a_plain_text_is_not_learnt_where_the_setting_says_so(
    prompt: str, completion: str, learnt: list[str]
) -> None:
    plain = PlainText(prompt, completion)
    frame, endless = PlainTextFrame(ENDS), PlainTextFrame(ENDS, train_end_of_turn=False)
    chat = endless.render(plain, everything=False)
    assert (chat.text, chat.learnt()) == (frame.render(plain, everything=False).text, learnt)
    assert endless.render(plain, everything=True) == frame.render(plain, everything=True)  # every token, as of chats


def test_no_text_has_nothing_to_learn() -> None:
    assert PlainTextFrame(ENDS).render(PlainText("", ""), everything=False).spans == []


def test_half_a_character_is_no_text() -> None:
    with pytest.raises(RowError, match="surrogate"):
        PlainTextFrame(ENDS).render(PlainText("", "\ud800"), everything=False)


@pytest.mark.parametrize(
    ("own", "asked", "chosen"),
    [
        ("own", None, "own"),
        ({"default": "first", "tool_use": "second"}, None, "first"),
        ({"default": "first", "tool_use": "second"}, "tool_use", "second"),
        ("own", "chatml", CHATML),
        (None, "chatml", CHATML),
    ],
)
def test_templates_have_names(own: str | dict[str, str] | None, asked: str | None, chosen: str) -> None:
    assert choose_template(own, asked, "a tokenizer") == chosen


def test_a_template_comes_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "mine.jinja").write_text("mine", encoding="utf-8")
    assert choose_template("own", str(tmp_path / "mine.jinja"), "a tokenizer") == "mine"
    with pytest.raises(
        UserError, match=r"chat_template: there is no file .*/mino.jinja \(did you mean .*/mine.jinja\?\)"
    ):
        choose_template("own", str(tmp_path / "mino.jinja"), "a tokenizer")
    with pytest.raises(UserError, match=r"no template of that name; give a Jinja file, default, rag or chatml$"):
        choose_template({"default": "own", "rag": "second"}, "qwen", "a tokenizer")
    with pytest.raises(UserError, match=r"cannot read .*: Is a directory; give a Jinja file$"):
        choose_template("own", str(tmp_path), "a tokenizer")


@pytest.mark.parametrize("name", ["./nowhere", "nowhere", "/nowhere", "no/where/at/all"])
def test_a_tokenizer_that_is_not_there_is_one_line(name: str) -> None:
    said = f"data.tokenizer: there is no folder {name}, and it is not the id of a hub (owner/name); check the path"
    with pytest.raises(UserError, match=rf"^{re.escape(said)}$"):
        load_tokenizer(name)


def test_a_broken_template_is_named_with_its_file_its_setting_and_the_line(tmp_path: Path) -> None:
    broken = "{{ 'fine' }}\n{% for %}\n"
    (tmp_path / "mine.jinja").write_text(broken, encoding="utf-8")
    with pytest.raises(UserError, match=r"^data\.chat_template: .*/mine\.jinja is not valid Jinja: line 2: Expected"):
        choose_template("own", str(tmp_path / "mine.jinja"), "a tokenizer")
    ENDS.save_pretrained(tmp_path / "tokenizer")
    (tmp_path / "tokenizer" / "chat_template.jinja").write_text(broken + "{{ x | no_such_filter }}", encoding="utf-8")
    with pytest.raises(
        UserError, match=r"^data\.tokenizer: the chat template of .*/tokenizer is not valid .*: line 2:"
    ):
        load_tokenizer(str(tmp_path / "tokenizer"))


@pytest.mark.parametrize("own", [None, {"tool_use": "second"}])
def test_no_template_is_an_error_with_advice_where_there_are_conversations(own: dict[str, str] | None) -> None:
    with pytest.raises(UserError, match=r"the source talks has conversations.*; set data\.chat_template"):
        choose_template(own, None, "a tokenizer", chats_in="talks")
    assert choose_template(own, None, "a tokenizer") is None


def test_control_tokens_are_the_special_ones(real_data: Path) -> None:
    tokens = control_tokens(load_tokenizer(str(real_data / "tokenizers" / "qwen3")))
    assert "<|im_end|>" in tokens and "<think>" not in tokens


def test_added_control_tokens_have_the_ids_after_the_last(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(iter(["Hello there."] * 9), 300)
    size = vocabulary_size(tokenizer)
    digest = tokenizer_digest(tokenizer)
    add_special_tokens(tokenizer, ("<|user|>", "<end>"))
    assert tokenizer.encode("Hi<|user|>there<end>")[-1] == size + 1 and size in tokenizer.encode("Hi<|user|>there<end>")
    assert set(control_tokens(tokenizer)) >= {"<|user|>", "<end>", "<|im_end|>"}
    assert tokenizer_digest(tokenizer) != digest
    tokenizer.save_pretrained(tmp_path)
    assert tokenizer_digest(load_tokenizer(str(tmp_path))) == tokenizer_digest(tokenizer)


@pytest.mark.parametrize("tokens", [("<|im_end|>",), ("<|user|>", "<|user|>"), ("Ġ",)])
def test_a_token_is_added_once(tokens: tuple[str, ...]) -> None:
    with pytest.raises(UserError, match=re.escape(f"{tokens[-1]!r} is in the vocabulary already; leave it out")):
        add_special_tokens(train_tokenizer(iter(["Hello there."] * 9), 300), tokens)


LACKING = """\
{# <|not_said|> #}<|begin|>{% for message in messages %}\
{{ '<|user|>' ~ message.content + "<|im_end|>" + '<｜tool｜>' }}{{ '<|' + message.role + '|>' }}{% endfor %}
"""


def test_control_tokens_of_a_given_template_are_in_the_vocabulary() -> None:
    tokenizer = train_tokenizer(iter(["Hello there."] * 9), 300)
    tokenizer.chat_template = LACKING
    lacking = '["<|begin|>", "<|user|>", "<｜tool｜>"]'
    with pytest.raises(UserError, match=re.escape(f"set data.special_tokens={lacking}")) as error:
        check_template_tokens(tokenizer, "mine.jinja")
    assert str(error.value).startswith("data.chat_template: mine.jinja writes <|begin|>, <|user|>, <｜tool｜>, which")
    add_special_tokens(tokenizer, json.loads(lacking))
    check_template_tokens(tokenizer, "mine.jinja")
