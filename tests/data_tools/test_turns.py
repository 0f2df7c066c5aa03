"""Right masks, or a reason: templates in the manner of many models × kinds of conversations × settings."""

import re
from datetime import date
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from data_tools.chat import ChatTemplate, Learning
from data_tools.chat_text import RenderedChat
from data_tools.errors import RowError
from data_tools.formats import Conversation
from data_tools.messages import Message, plain_parts
from tests.data_tools.templates import TEMPLATES

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}
CONTROL = ("<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|end|>")


def user(content: str) -> Message:
    return {"role": "user", "content": content}


def answer(content: str, **more: Any) -> Message:
    return {"role": "assistant", "content": content, **more}


ASKED, ASKED_AGAIN = user("What is asked?"), user("And what else?")
SYSTEM = {"role": "system", "content": "Be brief."}
CALL = answer("", tool_calls=[{"type": "function", "function": {"name": "get_time", "arguments": {"zone": "UTC"}}}])
TOOLS = [{"type": "function", "function": {"name": "get_time", "description": "The time.", "parameters": {}}}]
THOUGHT = {"reasoning_content": "Let me think.", "thinking": "Let me think."}
CHATS = {
    "one turn": Conversation([ASKED, answer("First.")]),
    "turns": Conversation([ASKED, answer("First."), ASKED_AGAIN, answer("Second.")]),
    "system": Conversation([SYSTEM, ASKED, answer("First."), ASKED_AGAIN, answer("Second.")]),
    "tools": Conversation([ASKED, CALL, {"role": "tool", "content": "12:00"}, answer("It is noon.")], TOOLS),
    "reasoning": Conversation([ASKED, answer("First.", **THOUGHT)]),
    "answer first": Conversation([answer("Welcome."), ASKED, answer("First.")]),
    "question last": Conversation([ASKED, answer("First."), ASKED_AGAIN]),
    "questions in a row": Conversation([ASKED, ASKED_AGAIN, answer("First.")]),
    "empty answer": Conversation([ASKED, answer("")]),
}
ALTERNATION = {"answer first", "questions in a row", "tools"}
REFUSED = {
    "llama 2": ALTERNATION,
    "gemma": ALTERNATION | {"system"},
    "gemma 3": ALTERNATION,
    "mistral 1": ALTERNATION | {"system"},
    "mistral 3": {"system"},  # put into the last question: earlier ones are written anew
    "eos only at the end": {"turns", "system", "answer first", "question last"},  # nothing ends the other turns
    "glm 4": set(CHATS),  # nothing ends any turn
}
"""Besides tools and reasoning, which most templates do not know."""
KNOW_TOOLS = {"llama 3.1", "mistral 3"}
KNOW_REASONING = {"reasoning always kept"}

_END = r"(!?<\|im_end\|>|<\|eot_id\|>|<end_of_turn>|<\|END_OF_TURN_TOKEN\|>|<\|end\|>|</s>|\s)+"


@cache
def template_of(name: str, learning: Learning) -> ChatTemplate:
    return ChatTemplate(TEMPLATES[name], SPECIAL, date(2025, 1, 1), learning, CONTROL)


def render(name: str, chat: Conversation, **learning: Any) -> list[RenderedChat]:
    template = template_of(name, Learning(**learning))
    chat = Conversation(chat.messages, chat.tools, parts=plain_parts(chat.messages))
    chats = template.render(chat)
    assert chats == template.render_with_jinja(chat)
    return chats


def said(chat: Conversation) -> list[str]:
    """What the answers of a conversation say."""
    return [
        message.get("reasoning_content", "") or message["content"] or "".join("get_time" for _ in chat.tools or [])
        for message in chat.messages
        if message["role"] == "assistant"
    ]


def refused(name: str, kind: str) -> bool:
    if kind == "empty answer":  # it would only teach to end
        return True
    if kind == "tools":
        return name not in KNOW_TOOLS
    if kind == "reasoning":
        return name not in KNOW_REASONING
    return kind in REFUSED.get(name, set())


@pytest.mark.parametrize("kind", CHATS)
@pytest.mark.parametrize("name", TEMPLATES)
def test_the_mask_is_right_or_the_row_is_refused(name: str, kind: str) -> None:
    chat = CHATS[kind]
    if refused(name, kind):
        with pytest.raises(RowError, match=r"^[^\n]{20,300}$"):
            render(name, chat)
        return
    (rendered,) = render(name, chat)
    assert len(rendered.learnt()) == len(said(chat))
    for learnt, words in zip(rendered.learnt(), said(chat), strict=True):
        before, found, after = learnt.rpartition(words)
        assert found == words
        assert before in ("", " ", "\n</think>\n\n", '{"name": "', '[TOOL_CALLS] [{"name": "')
        if kind == "tools" and words == "get_time":
            after = after.partition("}")[2].lstrip("}]")
        elif kind == "reasoning":
            after = after.removeprefix("\n</think>\n\nFirst.")
        assert re.fullmatch(r"(\n</think>\n\n)?" + _END, after)
        assert "ask" not in learnt and "what" not in learnt


RENDERED = [(name, kind) for name in TEMPLATES for kind in ("one turn", "turns", "system") if not refused(name, kind)]


@pytest.mark.parametrize(("name", "kind"), RENDERED)
def test_the_settings_change_what_they_say_and_nothing_else(name: str, kind: str) -> None:
    chat = CHATS[kind]
    text = render(name, chat, train_on="all")[0].text
    answers = render(name, chat)[0]
    assert answers.text == text
    (last,) = render(name, chat, train_on="last_assistant")
    (completion,) = render(name, chat, train_on="completion")
    assert last.spans == completion.spans == answers.spans[-1:]
    (endless,) = render(name, chat, train_end_of_turn=False)
    for learnt, words in zip(endless.learnt(), said(chat), strict=True):
        assert learnt.strip().removeprefix("</think>").strip() in (words, words + "!")
    if name == "eos only at the end":  # without an answer it ends as well, so its header has no place of its own
        return
    (headed,) = render(name, chat, train_headers=True)
    assert [end for _, end in headed.spans] == [end for _, end in answers.spans]
    for (with_header, _), (without, _) in zip(headed.spans, answers.spans, strict=True):
        assert with_header <= without
        assert b"ask" not in text[with_header:without] and b"<s>" not in text[with_header:without]


@pytest.mark.parametrize("said", ["<", "<think", "assistant", "im", "im_end", "n", "model", "Falcon:", "</s>"])
@pytest.mark.parametrize(
    "name", ["chatml with tags", "phi 3", "falcon", "deepseek r1", "llama 3", "reasoning always kept"]
)
def test_answers_that_look_like_markup_are_learnt_where_they_are(name: str, said: str) -> None:
    """Also answers that stand in headers and ends, and those with which the header goes on when it asks."""
    chat = Conversation([ASKED, answer(said)])
    (learnt,) = render(name, chat)[0].learnt()
    kept = said.strip() if name in ("falcon", "llama 3") else said
    assert re.fullmatch(r" ?(\n</think>\n\n)?" + re.escape(kept) + _END, learnt)


def test_what_becomes_of_chats_whose_earlier_turns_are_rewritten(real_data: Path) -> None:
    """Qwen3's template puts an empty think block before the last answer of a chat that has no thinking at all."""

    def learnt(on_rewrite: str) -> list[list[str]]:
        source = (real_data / "chat_templates" / "Qwen-Qwen3-0.6B.jinja").read_text(encoding="utf-8")
        template = ChatTemplate(source, SPECIAL, date(2025, 1, 1), Learning(on_rewrite=on_rewrite), CONTROL)
        return [chat.learnt() for chat in template.render(CHATS["turns"])]

    with pytest.raises(RowError, match=r"^[^\n]{20,300}$") as error:
        learnt("error")
    for said in ("rewrites earlier turns", "even empty ones", "message 1", "data.on_rewrite=last_turn", "split_turns"):
        assert said in str(error.value)
    assert learnt("last_turn") == [["Second.<|im_end|>"]]
    assert learnt("split_turns") == [["First.<|im_end|>"], ["Second.<|im_end|>"]]


def test_two_answers_in_a_row_are_told_where_no_setting_helps(real_data: Path) -> None:
    """Qwen3's template puts its empty block into the last answer only: the second is asked for by another text."""
    source = (real_data / "chat_templates" / "Qwen-Qwen3-0.6B.jinja").read_text(encoding="utf-8")
    twice = [ASKED, answer("First."), answer("Second.")]
    for train_on in ("assistant", "last_assistant", "all"):
        for on_rewrite in ("error", "last_turn", "split_turns"):
            learning = Learning(train_on=train_on, on_rewrite=on_rewrite)
            template = ChatTemplate(source, SPECIAL, date(2025, 1, 1), learning, CONTROL)
            for messages, numbers in ((twice, "1 and 2"), ([ASKED, answer("Before."), *twice], "3 and 4")):
                with pytest.raises(RowError, match=rf"^two assistant messages in a row \({numbers}\).*; join them"):
                    template.render(Conversation(messages, parts=plain_parts(messages)))
    learning = Learning(on_rewrite="last_turn")  # which helps where one answer is last
    template = ChatTemplate(source, SPECIAL, date(2025, 1, 1), learning, CONTROL)
    (chat,) = template.render(Conversation([*twice, ASKED_AGAIN, answer("Third.")]))
    assert chat.learnt() == ["Third.<|im_end|>"]


def test_a_rewritten_chat_is_not_learnt_whole_either(real_data: Path) -> None:
    """Qwen3's template drops the reasoning of earlier turns: `all` would lose it, and learn other headers."""
    source = (real_data / "chat_templates" / "Qwen-Qwen3-0.6B.jinja").read_text(encoding="utf-8")
    turns = [ASKED, answer("First.", **THOUGHT), ASKED_AGAIN, answer("Second.", **THOUGHT)]

    def learnt(messages: list[Message], on_rewrite: str) -> list[list[str]]:
        learning = Learning(train_on="all", on_rewrite=on_rewrite)
        template = ChatTemplate(source, SPECIAL, date(2025, 1, 1), learning, CONTROL)
        return [chat.learnt() for chat in template.render(Conversation(messages, parts=plain_parts(messages)))]

    for messages in (turns, CHATS["turns"].messages):
        with pytest.raises(RowError, match=r"rewrites earlier turns.*data\.on_rewrite=last_turn"):
            learnt(messages, "error")
    second = "<think>\nLet me think.\n</think>\n\nSecond.<|im_end|>"
    assert learnt(turns, "last_turn") == [[second]]
    assert learnt(turns, "split_turns") == [[second.replace("Second", "First")], [second]]
    ((whole,),) = learnt(turns[:2], "error")
    assert whole.startswith("<|im_start|>user\nWhat is asked?") and "Let me think." in whole


def test_whole_chats_lose_no_answer_either() -> None:
    losing = TEMPLATES["phi 4"].replace("message['content']", "message['content'][:3]")
    template = ChatTemplate(losing, SPECIAL, date(2025, 1, 1), Learning(train_on="all"), CONTROL)
    with pytest.raises(RowError, match="does not contain the answer"):
        template.render(Conversation([user("Hi"), answer("First.")]))


def test_an_answer_that_only_its_end_contains_is_lost() -> None:
    losing = TEMPLATES["phi 4"].replace(
        "message['content']", "(message['content'] if message['content'] != 'im' else '')"
    )
    template = ChatTemplate(losing, SPECIAL, date(2025, 1, 1), control_tokens=CONTROL)
    with pytest.raises(RowError, match="does not contain the answer"):
        template.render(Conversation([ASKED, answer("im")]))


def test_a_header_that_goes_on_differently_is_not_cut_within_a_word() -> None:
    """What asks ends in `<think>`, the turn goes on with `<tool_call>`: the `<t` that they share is the model's."""
    source = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}{% for call in m.tool_calls or [] %}"
        "<tool_call>{{ call.function.name }}{% endfor %}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
    )
    template = ChatTemplate(source, SPECIAL, date(2025, 1, 1), control_tokens=CONTROL)
    (chat,) = template.render(Conversation([ASKED, CALL, {"role": "tool", "content": "12:00"}, answer("Noon.")]))
    assert chat.learnt() == ["<tool_call>get_time<|im_end|>", "Noon.<|im_end|>"]
