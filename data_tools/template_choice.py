"""Which chat template is used: the tokenizer's own, one that it has by name, `chatml`, or a Jinja file."""

import json
import re
from pathlib import Path

from jinja2 import nodes
from transformers import PreTrainedTokenizerBase

from data_tools.errors import UserError
from data_tools.files import near_path
from data_tools.template import compile_template

CHATML = """\
{%- for message in messages -%}
{{- '<|im_start|>' + message.role + '\\n' -}}
{%- if message.role == 'assistant' -%}
{%- generation -%}{{- message.content + '<|im_end|>' -}}{%- endgeneration -%}
{%- else -%}
{{- message.content + '<|im_end|>' -}}
{%- endif -%}
{{- '\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""
"""The template of trained tokenizers: an answer and its end are learnt, headers are not."""

ANY_TEMPLATE = "a Jinja file, or to chatml"
"""What conversations need, for messages."""

_CONTROL = re.compile(r"<[|｜][^\s<>|｜'\"{}]+[|｜]>")
"""What looks like a control token: `<|im_start|>`."""


def choose_template(
    own: str | dict[str, str] | None, asked: str | None, name: str, chats_in: str | None = None
) -> str | None:
    """The tokenizer's own template, one of its named ones, `chatml`, or a Jinja file; None: there is none.

    Args:
        own: what the tokenizer has.
        asked: `data.chat_template`.
        name: of the tokenizer.
        chats_in: a source that has conversations.

    Raises:
        UserError: there is none for conversations, or no such one, or it is not valid.
    """
    named = {"default": own} if isinstance(own, str) else own or {}
    if (key := asked or "default") in named:
        compile_template(named[key], f"data.tokenizer: the chat template of {name}")
        return named[key]
    if asked is None:
        if chats_in is not None:
            has = "no default chat template" if named else "no chat template"
            one_of = f"one of {', '.join(sorted(named))}, " if named else ""
            raise UserError(
                f"the source {chats_in} has conversations, and {name} has {has}; set data.chat_template to {one_of}"
                f"{ANY_TEMPLATE}"
            )
        return None
    if asked == "chatml":
        return CHATML
    if not Path(key).exists():
        known = " or ".join([", ".join(["a Jinja file", *sorted(named)]), "chatml"])
        raise UserError(
            f"data.chat_template: there is no file {key}{near_path(key)}, and {name} has no template of that name; "
            f"give {known}"
        )
    return read_template(key)


def read_template(path: str) -> str:
    """Read the Jinja file of `data.chat_template`.

    Raises:
        UserError: it cannot be read, or is not valid.
    """
    try:
        source = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else f"not UTF-8 at byte {error.start}"
        raise UserError(f"data.chat_template: cannot read {path}: {reason}; give a Jinja file") from None
    compile_template(source, f"data.chat_template: {path}")
    return source


def check_template_tokens(tokenizer: PreTrainedTokenizerBase, template: str) -> None:
    """What looks like a control token in `data.chat_template` must be one token: a model of this vocabulary that never
    saw it in pieces would learn to spell it.

    Args:
        tokenizer: with everything added.
        template: what the setting says, for the message.

    Raises:
        UserError: the vocabulary lacks some.
    """
    tree = compile_template(str(tokenizer.chat_template), template).environment.parse(str(tokenizer.chat_template))
    texts = [node.data for node in tree.find_all(nodes.TemplateData)]
    texts += [node.value for node in tree.find_all(nodes.Const) if isinstance(node.value, str)]
    looking = dict.fromkeys(token for text in texts for token in _CONTROL.findall(text))
    if lacking := [token for token in looking if len(tokenizer.encode(token, add_special_tokens=False)) != 1]:
        raise UserError(
            f"data.chat_template: {template} writes {', '.join(lacking)}, which the vocabulary lacks; set "
            f"data.special_tokens={json.dumps(lacking, ensure_ascii=False)}, or, if this is to be encoded in pieces, "
            f"make the template the tokenizer's own (chat_template.jinja in its folder)"
        )
