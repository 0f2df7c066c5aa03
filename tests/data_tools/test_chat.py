"""What is rendered, and which part of it is learnt."""

from datetime import date

import pytest

from data_tools.chat import ChatTemplate
from data_tools.errors import RowError, UserError
from data_tools.formats import Conversation
from data_tools.tokenizer import CHATML

UNTAGGED = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TWO_TURNS = Conversation(
    [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello!"},
        {"role": "user", "content": "Hello!"},
        {"role": "assistant", "content": "Hello again, assistant."},
    ]
)


def template(source: str) -> ChatTemplate:
    return ChatTemplate(source, {"eos_token": "<|im_end|>"}, date(2025, 7, 8))


def trained(chat_template: ChatTemplate, conversation: Conversation = TWO_TURNS) -> list[str]:
    (rendered,) = chat_template.render(conversation)
    assert chat_template.render_with_jinja(conversation) == [rendered]
    return rendered.learnt()


@pytest.mark.parametrize("source", [CHATML, UNTAGGED], ids=["generation tags", "prefix differences"])
def test_answers_and_their_ends_are_learnt_and_nothing_else(source: str) -> None:
    assert trained(template(source)) == ["Hello!<|im_end|>", "Hello again, assistant.<|im_end|>"]


def test_both_ways_of_finding_spans_agree() -> None:
    assert template(CHATML).render(TWO_TURNS) == template(UNTAGGED).render(TWO_TURNS)


def test_the_date_is_frozen() -> None:
    dated = template("{{ strftime_now('%d %B %Y') }}" + CHATML)
    assert dated.render(TWO_TURNS)[0].text.startswith(b"08 July 2025")


def test_template_arguments_reach_the_template_row_by_row() -> None:
    switch = template("{% if thinking %}/think{% endif %}" + CHATML)
    on = Conversation(TWO_TURNS.messages, template_arguments={"thinking": True})
    assert switch.render(on)[0].text.startswith(b"/think")
    assert not switch.render(TWO_TURNS)[0].text.startswith(b"/think")


def test_a_template_that_refuses_gives_its_own_words() -> None:
    strict = template("{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + CHATML)
    with pytest.raises(RowError, match="the chat template refuses the conversation: no system"):
        strict.render(TWO_TURNS)


def test_a_template_that_rewrites_earlier_turns_is_refused() -> None:
    rewriting = UNTAGGED.replace("m.content", "(m.content if loop.last else m.content | upper)")
    with pytest.raises(RowError, match="message 2 no longer reads as the model had to write it once the chat goes on"):
        template(rewriting).render(TWO_TURNS)


def test_a_template_that_loses_an_answer_is_refused() -> None:
    losing = CHATML.replace("message.content + '<|im_end|>'", "message.content[:3] + '<|im_end|>'")
    with pytest.raises(RowError, match=r"does not contain the answer of message 4$"):
        template(losing).render(TWO_TURNS)  # no setting helps, so none is advised


def test_an_answer_does_not_pass_for_another() -> None:
    """The first answer is lost; that the second contains its words proves nothing."""
    losing = CHATML.replace(
        "message.content + '<|im_end|>'", "(message.content if loop.index > 2 else '') + '<|im_end|>'"
    )
    said = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "Yes"}]
    more = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "Yes, of course"}]
    with pytest.raises(RowError, match=r"does not contain the answer"):
        template(losing).render(Conversation(said + more))


@pytest.mark.parametrize("weights", [[1.0, 1.0, 0.5], [1.0, 0.5, 0.5], [1.0, 1.0, 0.0]])
def test_weights_are_not_lost_where_tags_do_not_tell_answers_apart(weights: list[float]) -> None:
    """One pair of tags holds both answers: there is no place for the weight of one of them."""
    joining = template(
        "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% elif loop.previtem.role == 'user' %}"
        "{% generation %}{{ m.content }}{% if not loop.last %}{{ loop.nextitem.content }}{% endif %}<end>"
        "{% endgeneration %}{% endif %}{% endfor %}"
    )
    chat = [{"role": role, "content": role[0]} for role in ("user", "assistant", "assistant")]
    assert trained(joining, Conversation(chat)) == trained(joining, Conversation(chat, weights=[0.5, 1, 1]))
    with pytest.raises(RowError, match=r"tags do not tell the answers apart, .*(`weight`|not all are learnt)"):
        joining.render(Conversation(chat, weights=weights))


@pytest.mark.parametrize("expression", ["messages[9].content", "messages[0].content.index('?!')", "1 // 0"])
def test_a_template_that_fails_refuses_the_row(expression: str) -> None:
    with pytest.raises(RowError, match="refuses the conversation"):
        template("{{ " + expression + " }}" + CHATML).render(TWO_TURNS)


def test_half_a_character_is_no_text() -> None:
    with pytest.raises(RowError, match="half of a surrogate pair"):
        template(CHATML).render(Conversation([{"role": "assistant", "content": "a \ud800 b"}]))


def test_a_template_whose_end_of_turn_is_not_learnt_is_refused() -> None:
    endless = (
        "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}"
        "{% else %}{{ m.content }}{% endif %}{{ '<end>\n' }}{% endfor %}"
    )
    with pytest.raises(RowError, match=r"<end>.* a model would never stop"):
        template(endless).render(TWO_TURNS)


def test_a_broken_template_names_the_line() -> None:
    with pytest.raises(UserError, match="line 2"):
        template("{{ 'fine' }}\n{% for %}")


def test_a_prompt_ends_where_the_answer_starts() -> None:
    chat_template = template(CHATML)
    prompt = chat_template.prompt(TWO_TURNS.messages[:2])
    text = chat_template.render(TWO_TURNS)[0].text.decode()
    assert text[len(prompt) :].startswith("Hello!")
