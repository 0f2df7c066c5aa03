"""Columns under other names, columns composed into texts, and rows remade by a function of the user's."""

import importlib
import string
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from data_tools.errors import RowError, UserError

_TURNS = ("system", "user", "assistant")
_KNOW_SYSTEM = {"messages", "instruction", "conversation", "conversations", "prompt"}
"""Columns of formats that have a system prompt beside them."""


def compose_columns(row: dict[str, Any], columns: dict[str, str]) -> dict[str, Any]:
    """Make the fields that `columns` asks for.

    >>> compose_columns({"q": "Why?", "a": "So."}, {"prompt": "q", "completion": "<b>{a}</b>"})
    {'q': 'Why?', 'a': 'So.', 'prompt': 'Why?', 'completion': '<b>So.</b>'}
    >>> compose_columns({"q": "Why?", "a": "So."}, {"user": "{q}", "assistant": "{a}"})["messages"]
    [{'role': 'user', 'content': 'Why?'}, {'role': 'assistant', 'content': 'So.'}]

    Args:
        columns: field → the name of a column, or text with columns in braces (`{{` for a brace). `system`, `user` and
            `assistant` together make `messages`. `system` may be a text of several words, the same for all rows.

    Raises:
        RowError: the row lacks one of the columns, or has nothing but a system prompt.
    """
    fields = {
        name: template if name == "system" and _is_constant(row, template) else _value(row, template)
        for name, template in columns.items()
    }
    texts = {role: _text(fields[role], columns[role]) for role in _TURNS if role in fields}
    turns = [{"role": role, "content": text} for role, text in texts.items() if text or role != "system"]
    made = {**row, **fields}
    if [turn["role"] for turn in turns] == ["system"]:
        if not _KNOW_SYSTEM & made.keys():
            raise RowError("`columns` gives `system` and no other message; give `user` and `assistant`, too")
        return made
    if "system" in fields and turns:
        del made["system"]  # it is the first message now
    return {**made, "messages": turns} if turns else made


def _is_constant(row: dict[str, Any], template: str) -> bool:
    """Whether a text is no name of a column: one word that the row lacks may be misspelt."""
    return "{" not in template and len(template.split()) > 1 and template not in row


def _text(value: Any, column: str) -> str:
    """Numbers and texts become text; nothing else says what it is to be."""
    if not isinstance(value, str | int | float):
        raise RowError(f"column {column!r} is {'missing' if value is None else type(value).__name__}, not text")
    return str(value)


def _value(row: dict[str, Any], template: str) -> Any:
    if "{" not in template:
        if template not in row:
            raise RowError(f"there is no column {template!r}; the columns are {', '.join(sorted(row))}")
        return row[template]
    parts = []
    try:
        fields = list(string.Formatter().parse(template))
    except ValueError as error:
        raise RowError(f"the composition {template!r} is not valid: {error}; write {{{{ and }}}} for braces") from None
    for literal, name, form, conversion in fields:
        parts.append(literal)
        if name is None:
            continue
        if form or conversion or row.get(name) is None:
            raise RowError(f"there is nothing in column {name!r}, which {template!r} needs")
        parts.append(_text(row[name], name))
    names = [name for _, name, _, _ in fields if name is not None]
    if names and not any(_text(row[name], name).strip() for name in names) and "".join(parts).strip():
        raise RowError(f"there is nothing in the columns of {template!r}")
    return "".join(parts)


def load_function(name: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Import `module:function`, also from the folder where the command runs.

    Raises:
        UserError: there is no such function.
    """
    module_name, _, function_name = name.partition(":")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        function: Callable[[dict[str, Any]], Any] = getattr(importlib.import_module(module_name), function_name)
    except Exception as error:  # the user's own module: importing it may raise anything
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise UserError(
            f"data.sources: cannot load the function {name!r}: {reason}; write it as module:function"
        ) from None

    def checked(row: dict[str, Any]) -> dict[str, Any]:
        try:
            made = function(row)
        except Exception as error:  # the user's own code: whatever it raises, this row is the one it refuses
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            raise RowError(f"{name} refuses the row: {reason}") from None
        if not isinstance(made, dict):
            raise RowError(f"{name} returned {type(made).__name__}, not a row")
        return made

    return checked


def function_file(name: str) -> Path:
    """The file that defines `module:function`: its content decides tokens too."""
    load_function(name)
    file = sys.modules[name.partition(":")[0]].__file__
    if file is None:
        raise UserError(f"data.sources: the function {name!r} has no source file; put it into one")
    return Path(file)
