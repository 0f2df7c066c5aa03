"""The fast way through a template writes what Jinja writes, byte for byte, with the same spans."""

from datetime import date
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_tools.chat import ChatTemplate, Learning
from data_tools.chat_text import RenderedChat
from data_tools.errors import RowError
from data_tools.formats import Conversation
from data_tools.messages import plain_parts
from tests.data_tools.templates import TEMPLATES

TODAY = date(2025, 1, 1)
CONTROL = ("<|im_start|>", "<|im_end|>", "<eos>", "</s>", "<|eot_id|>", "<end_of_turn>", "<|end|>")
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


def conversation(contents: list[str], **facts: Any) -> Conversation:
    """Contents of user and assistant in turn, where a first text that begins with `S:` is the system's."""
    roles = ["user", "assistant"] * len(contents)
    if contents[0].startswith("S:"):
        roles.insert(0, "system")
    messages = [{"role": role, "content": content} for role, content in zip(roles, contents, strict=False)]
    return Conversation(messages, parts=plain_parts(messages), **facts)


def outcome(render: Any, chat: Conversation) -> list[RenderedChat] | str:
    try:
        rendered: list[RenderedChat] = render(chat)
    except RowError as error:
        return str(error)
    return rendered


def assert_same(template: ChatTemplate, chat: Conversation) -> None:
    assert outcome(template.render, chat) == outcome(template.render_with_jinja, chat)


def assert_same_for_any_chats(source: str) -> None:
    @settings(max_examples=8, deadline=None, derandomize=True)
    @given(learnings, st.lists(contents, min_size=1, max_size=5))
    def check(learning: Learning, chats: list[list[str]]) -> None:
        template = ChatTemplate(source, SPECIAL, TODAY, learning, CONTROL)
        for chat in chats:
            assert_same(template, conversation(chat))

    if ChatTemplate(source, SPECIAL, TODAY)._skeletons.proved:  # the others have one way only
        check()


pieces = st.sampled_from(
    [
        *(
            "Hello",
            " ",
            "\n",
            "\n\n\n",
            "\t",
            "é",
            "日本語",
            "🙂",
            "\u2003",
            "\u2028",
            "<think>",
            "</think>",
            "\n\n",
            "x",
        ),
        *(
            "<|im_end|>",
            "</s>",
            "{{ m }}",
            "{% if %}",
            "<b>&amp;</b>",
            "[INST]",
            "assistant",
            "S:",
            "'",
            '"',
            "\\n",
            "<",
        ),
    ]
)
contents = st.lists(st.one_of(st.lists(pieces, max_size=5).map("".join), st.text(max_size=4)), min_size=1, max_size=6)
learnings = st.builds(
    Learning,
    train_on=st.sampled_from(["assistant", "last_assistant", "completion", "all"]),
    train_end_of_turn=st.booleans(),
    train_headers=st.booleans(),
    on_rewrite=st.sampled_from(["error", "last_turn", "split_turns"]),
    control_tokens=st.sampled_from(["keep", "escape", "reject"]),
)


@pytest.mark.parametrize("name", TEMPLATES)
def test_known_templates(name: str) -> None:
    assert_same_for_any_chats(TEMPLATES[name])


def test_real_templates(real_data: Path) -> None:
    for file in sorted((real_data / "chat_templates").glob("*.jinja")):
        assert_same_for_any_chats(file.read_text(encoding="utf-8"))


EDGES = ["Hello", "Hi\n", " Hi", "\n\nHello\n\n", "\n" * 40 + "x" + "\n" * 2000, "S:\u2003", "S: shardtune-slot-1-"]


@pytest.mark.parametrize("write", ["m.content", "m.content.lstrip('\n')", "m.content.rstrip('\n')", "m.content | trim"])
@pytest.mark.parametrize("around", ["{}{}", "{}\n{}", "<s>\n{}</s>\n{}", "{}{{{{ '\n' * 8 }}}}{}"])
def test_line_breaks_of_the_template_are_not_those_of_contents(write: str, around: str) -> None:
    """Also where nothing, or nothing but line breaks, is between two contents."""
    answer = "{{ " + write + " }}"
    source = "{% for m in messages %}" + around.format("", answer).replace("{}", "") + "{% endfor %}"
    template = ChatTemplate(source, {}, TODAY, Learning("all"))
    assert template._skeletons.proved
    for user in EDGES:
        for said in EDGES:
            assert_same(template, conversation([user, said, "Why?", user]))


@pytest.mark.parametrize(
    ("one", "other"),
    [(1, 1.0), (1, True), (None, float("nan")), ("1", 1), ([], ()), (2**70, 2**71), ("\ud800", "\ud801")],
)
def test_facts_that_templates_can_tell_apart_have_their_own_skeletons(one: Any, other: Any) -> None:
    source = "{{ tools[0].a }}{% for m in messages %}{{ m.content }}</s>{% endfor %}"
    template = ChatTemplate(source, {}, TODAY, control_tokens=["</s>"])
    for value in (one, other):
        assert_same(template, conversation(["Hi", "Hello"], tools=[{"a": value}]))


def test_facts_beyond_json_take_the_slow_way() -> None:
    source = "{{ day }}{% for m in messages %}{{ m.content }}</s>{% endfor %}"
    template = ChatTemplate(source, {}, TODAY, control_tokens=["</s>"])
    (chat,) = template.render(conversation(["Hi", "Hello"], template_arguments={"day": TODAY}))
    assert chat.text == b"2025-01-01Hi</s>Hello</s>"


@pytest.mark.parametrize("learning", [Learning(control_tokens="reject"), Learning(control_tokens="escape")])
@pytest.mark.parametrize("where", ["contents", "tools", "arguments", "noncharacter"])
def test_control_tokens_do_not_slip_through_the_fast_way(learning: Learning, where: str) -> None:
    source = "{{ tools }}{{ x }}{% for m in messages %}{{ m.content }}</s>{% endfor %}"
    template = ChatTemplate(source, {}, TODAY, learning, ["</s>"])
    assert template._skeletons.proved
    chat = {
        "contents": conversation(["Hi</s>", "Hello"]),
        "tools": conversation(["Hi", "Hello"], tools=[{"name": "f</s>"}]),
        "arguments": conversation(["Hi", "Hello"], template_arguments={"x": {"</s>": 1}}),
        "noncharacter": conversation(["Hi\ufdd0", "Hello"]),
    }[where]
    assert_same(template, chat)
    made = outcome(template.render, chat)
    assert (
        isinstance(made, str)
        or where == "noncharacter"
        or [made[0].text[a:b] for a, b in made[0].literals] == [b"</s>"]
    )
