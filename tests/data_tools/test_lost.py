"""No tool, no call and no message is lost: it is in the text, or the row is refused."""

import json
from datetime import date
from pathlib import Path

import pytest

from data_tools.chat import ChatTemplate
from data_tools.errors import RowError
from data_tools.formats import Conversation
from data_tools.messages import Message, plain_parts
from tests.data_tools.test_turns import ASKED, CALL, TOOLS, answer, render, user

NOON = {"role": "tool", "content": "12:00"}


def test_tools_that_the_template_never_writes_refuse_the_row() -> None:
    with pytest.raises(RowError, match="does not render the tool 'get_time'"):
        render("phi 4", Conversation([ASKED, answer("Noon.")], TOOLS))


@pytest.mark.parametrize("said", ["I call get_time.", json.dumps(TOOLS)])
def test_a_tool_that_is_only_named_in_a_message_is_lost(said: str) -> None:
    """The name is in the text, but what the tool is for is not, or not where the template says so."""
    for messages in ([ASKED, answer(said)], [user(said), answer("Noon.")]):
        with pytest.raises(RowError, match="does not render the tool 'get_time'"):
            render("phi 4", Conversation(messages, TOOLS))
        assert render("llama 3.1", Conversation(messages, TOOLS))


def test_a_tool_that_the_template_leaves_out_is_lost_though_a_call_names_it() -> None:
    """Its name is in the text, and the other tools change the text: neither says that it is written."""
    source = (
        "{% for tool in tools or [] %}{% if loop.first %}{{ tool | tojson }}\n{% endif %}{% endfor %}"
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    template = ChatTemplate(source, {}, date(2025, 1, 1), control_tokens=("<|im_end|>",))
    other = {"type": "function", "function": {"name": "get_place"}}
    messages = [ASKED, answer("I called get_time.")]
    assert template.render(Conversation(messages, TOOLS))
    assert template.render(Conversation(messages, [*TOOLS, *TOOLS]))  # the second says nothing new
    with pytest.raises(RowError, match="does not render the tool 'get_time'"):
        template.render(Conversation(messages, [other, *TOOLS]))


BARE = [TOOLS[0]["function"]]


def test_bare_tools_are_written_as_they_are_or_refused(real_data: Path) -> None:
    """As transformers does, which wraps none; a template that asks for the wrapping says so."""

    def rendered(name: str, messages: list[Message]) -> str:
        source = (real_data / "chat_templates" / name).read_text(encoding="utf-8")
        template = ChatTemplate(source, {"eos_token": "</s>"}, date(2025, 1, 1), control_tokens=("</s>", "<|im_end|>"))
        (chat,) = template.render(Conversation(messages, BARE, parts=plain_parts(messages)))
        return chat.text.decode()

    for messages in ([ASKED, answer("Noon.")], [ASKED, CALL, NOON, answer("Noon.")]):
        assert json.dumps(BARE[0]) in rendered("Qwen-Qwen2.5-7B-Instruct.jinja", messages)
        for name in ("mistralai-Mistral-Nemo-Instruct-2407.jinja", "openai-gpt-oss-120b.jinja"):
            with pytest.raises(RowError, match=r"tools as {\"type\": \"function\", .*'get_time' is a bare function"):
                rendered(name, messages)


def test_a_template_that_writes_nothing_of_a_bare_tool_refuses_it_though_a_call_names_it() -> None:
    source = (
        "{% for tool in tools or [] %}Tool: {{ tool.function.name if tool.function is defined }}\n{% endfor %}"
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    template = ChatTemplate(source, {}, date(2025, 1, 1), control_tokens=("<|im_end|>",))
    assert template.render(Conversation([ASKED, answer("I called get_time.")], TOOLS))
    with pytest.raises(RowError, match="is a bare function"):
        template.render(Conversation([ASKED, answer("I called get_time.")], BARE))


def test_tools_without_names_are_lost_too() -> None:
    nameless = [{"type": "function", "function": {"description": "The time."}}]
    with pytest.raises(RowError, match="does not render the tool"):
        render("phi 4", Conversation([ASKED, answer("Noon.")], nameless))
    assert "The time." in render("llama 3.1", Conversation([ASKED, answer("Noon.")], nameless))[0].text.decode()


def test_tools_among_the_arguments_are_lost_where_the_template_does_not_read_them(real_data: Path) -> None:
    """SmolTalk2 has them there: SmolLM3's template reads them, others do not."""
    messages = [ASKED, answer("Noon.")]
    row = Conversation(messages, template_arguments={"xml_tools": ["get_time()"]}, parts=plain_parts(messages))
    source = (real_data / "tokenizers" / "smollm3" / "chat_template.jinja").read_text(encoding="utf-8")
    (chat,) = ChatTemplate(source, {}, date(2025, 1, 1), control_tokens=("<|im_end|>",)).render(row)
    assert b"get_time()" in chat.text
    source = source.replace("xml_tools", "other")
    with pytest.raises(RowError, match=r"never reads `xml_tools` of `chat_template_kwargs`"):
        ChatTemplate(source, {}, date(2025, 1, 1), control_tokens=("<|im_end|>",)).render(row)


def test_a_template_that_writes_the_first_call_only_refuses_several(real_data: Path) -> None:
    """OpenAI's for gpt-oss does; Qwen2.5's writes them all."""
    twice = {**CALL, "tool_calls": CALL["tool_calls"] * 2}
    row = Conversation([ASKED, twice, NOON, NOON, answer("It is noon.")], TOOLS)

    def learnt(name: str) -> str:
        source = (real_data / "chat_templates" / name).read_text(encoding="utf-8")
        ends = ("<|im_end|>", "<|call|>", "<|return|>")
        return ChatTemplate(source, {}, date(2025, 1, 1), control_tokens=ends).render(row)[0].learnt()[0]

    assert learnt("Qwen-Qwen2.5-7B-Instruct.jinja").count("get_time") == 2
    with pytest.raises(RowError, match="does not write all 2 tool calls of message 1"):
        learnt("openai-gpt-oss-120b.jinja")


IGNORES = (
    "{% for message in messages %}{% if message.role in ['user', 'assistant'] %}"
    "<|im_start|>{{ message.role }}\n{{ message.content | trim }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.mark.parametrize("role", ["system", "tool"])
def test_a_message_that_the_template_ignores_refuses_the_row(role: str) -> None:
    template = ChatTemplate(IGNORES, {}, date(2025, 1, 1), control_tokens=("<|im_end|>",))
    ignored = {"role": role, "content": "Speak French."}
    at = 0 if role == "system" else 1
    messages = [user("  Hi  "), answer("Salut.")]
    assert template.render(Conversation(messages, parts=plain_parts(messages)))
    messages = [*messages[:at], ignored, *messages[at:]]
    with pytest.raises(RowError, match=f"ignores message {at}, of role {role}"):
        template.render(Conversation(messages, parts=plain_parts(messages)))


def test_what_the_template_writes_otherwise_is_not_lost() -> None:
    source = IGNORES.replace("['user', 'assistant']", "['user', 'assistant', 'tool']").replace(
        "message.content | trim", "message.content | tojson if message.role == 'tool' else message.content"
    )
    template = ChatTemplate(source, {}, date(2025, 1, 1), control_tokens=("<|im_end|>",))
    (chat,) = template.render(Conversation([ASKED, {"role": "tool", "content": 'a "quote"'}, answer("Noon.")]))
    assert b'\\"quote' in chat.text
