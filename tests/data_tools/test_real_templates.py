"""Right masks, or a reason: public chat templates × kinds of conversations × what becomes of rewritten turns."""

import re
from datetime import date
from functools import cache
from pathlib import Path

import pytest

from data_tools.chat import ChatTemplate, Learning
from data_tools.errors import RowError
from data_tools.formats import Conversation
from data_tools.messages import plain_parts
from tests.data_tools.test_turns import ASKED, ASKED_AGAIN, CHATS, THOUGHT, TOOLS, answer, said

CONTROL = ("<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|end_of_text|>")
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}
KINDS = {
    **CHATS,
    "tools, no call": Conversation([ASKED, answer("Noon.")], TOOLS),
    "reasoning, turns": Conversation([ASKED, answer("First.", **THOUGHT), ASKED_AGAIN, answer("Second.", **THOUGHT)]),
    "thinking in the text": Conversation([ASKED, answer("<think>\nLet me think.\n</think>\n\nFirst.")]),
}
THOUGHTS = {"reasoning", "reasoning, turns"}
NO_TOOLS = {"tools", "tools, no call"}
REFUSED = {
    "HuggingFaceTB-SmolLM3-3B": THOUGHTS | NO_TOOLS,
    "Qwen-Qwen2.5-7B-Instruct": THOUGHTS,
    "Qwen-Qwen3-0.6B": set(),
    "deepseek-ai-DeepSeek-R1-Distill-Qwen-32B": THOUGHTS | NO_TOOLS | {"thinking in the text"},  # cut out of answers
    "ibm-granite-granite-3.3-2B-Instruct": THOUGHTS | {"tools"},  # its calls are text
    "microsoft-Phi-3.5-mini-instruct": THOUGHTS | NO_TOOLS,
    # Turns have to alternate, calls need an id, and a system message is written before an unanswered question only.
    "mistralai-Mistral-Nemo-Instruct-2407": THOUGHTS | {"answer first", "questions in a row", "system", "tools"},
    "openai-gpt-oss-120b": set(),
    "trl-phi3_training": THOUGHTS | NO_TOOLS,
    "trl-qwen2_5_training": THOUGHTS,
    "trl-qwen3": set(),
    "trl-qwen3_training": set(),
}
"""The kinds that a template refuses, or loses a part of, whatever is set; besides empty answers."""
QWEN3 = {"question last", "reasoning, turns", "system", "tools", "turns"}
REWRITTEN = {
    "Qwen-Qwen3-0.6B": QWEN3,
    "trl-qwen3": QWEN3,
    "openai-gpt-oss-120b": QWEN3 - {"tools"} | {"answer first"},
}
"""The kinds whose earlier turns a template rewrites."""
BEFORE_ANSWERS = r"(<\|channel\|>final<\|message\|>|<think>\n)?"
AFTER_ANSWERS = r"(<\|im_end\|>|<\|end\|>|<\|end_of_text\|>|<\|return\|>|</s>|<｜end▁of▁sentence｜>)(\n(</s>)?)?"


@cache
def template_of(path: Path, on_rewrite: str) -> ChatTemplate:
    source = path.read_text(encoding="utf-8")
    return ChatTemplate(source, SPECIAL, date(2025, 1, 1), Learning(on_rewrite=on_rewrite), CONTROL)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", REFUSED)
def test_the_mask_is_right_or_the_row_is_refused(name: str, kind: str, real_data: Path) -> None:
    path = real_data / "chat_templates" / f"{name}.jinja"
    is_refused = kind in REFUSED[name] | {"empty answer"}
    chat = Conversation(KINDS[kind].messages, KINDS[kind].tools, parts=plain_parts(KINDS[kind].messages))
    if is_refused or kind in REWRITTEN.get(name, set()):
        with pytest.raises(RowError, match=r"^[^\n]{20,300}$"):
            template_of(path, "error").render(chat)
    if is_refused:
        with pytest.raises(RowError):
            template_of(path, "split_turns").render(chat)
        return
    documents = template_of(path, "split_turns").render(chat)
    assert (len(documents) > 1 or documents[0].rewritten) == (kind in REWRITTEN.get(name, set()))
    learnt = [part for document in documents for part in document.learnt()]
    expected = said(chat) if kind != "tools, no call" else ["Noon."]
    assert len(learnt) == len(expected)
    for part, words in zip(learnt, expected, strict=True):
        assert words in part and "asked" not in part and "what else" not in part
        if kind not in ("tools", *THOUGHTS):
            assert re.fullmatch(BEFORE_ANSWERS + re.escape(words) + AFTER_ANSWERS, part)


def test_every_template_is_tried(real_data: Path) -> None:
    assert {path.stem for path in (real_data / "chat_templates").glob("*.jinja")} == set(REFUSED)
