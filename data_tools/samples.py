"""The embedded sample data: chats built from the documentation of Python's own standard library.

The sources are parsed, not imported, so building the sample runs nobody's code; modules written in C, which have no
source to parse, are imported for their docstrings.
"""

import ast
import importlib
import inspect
import json
import sys
import sysconfig
import types
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_tools.store import write_text

_SKIPPED = {"test", "tests", "idle_test", "idlelib", "lib2to3", "site-packages", "dist-packages", "turtledemo"}
_C_MODULES = (
    *("array", "atexit", "audioop", "binascii", "builtins", "cmath", "errno", "faulthandler", "fcntl", "gc", "grp"),
    *("itertools", "marshal", "math", "mmap", "posix", "pwd", "pyexpat", "resource", "select", "sys", "syslog"),
    *("termios", "time", "unicodedata", "zlib"),
)

_QUESTIONS = {
    "module": ("What is the Python module `{}` for?", "Tell me about Python's `{}` module.", "What does `{}` offer?"),
    "class": ("What is `{}` in Python?", "Explain the class `{}`.", "What does the class `{}` do?"),
    "function": ("What does `{}` do in Python?", "Explain `{}`.", "How does `{}` work?", "When would I use `{}`?"),
}


@dataclass(frozen=True)
class _Subject:
    """Something that is documented."""

    kind: str
    """`module`, `class` or `function`."""
    name: str
    """Qualified by its module: `os.path.join`."""
    owner: str
    """How the answer places it: `a function of the module `os.path``."""
    documentation: str | None
    parameters: str | None = None
    """The text between the parentheses of a call, where it is known."""


def write_python_docs(path: Path) -> None:
    """Write the sample as JSONL with `messages`, the same on every machine with the same Python."""
    path.parent.mkdir(parents=True, exist_ok=True)
    chats = (json.dumps({"messages": chat}, ensure_ascii=False) + "\n" for chat in python_docs())
    write_text(path, "".join(chats))


def python_docs() -> Iterator[list[dict[str, str]]]:
    """Chats about every public, documented module, class and function of the standard library."""
    for module, path in _python_modules():
        subjects = _subjects_of_source(module, ast.parse(path.read_bytes()), "a module of Python's standard library")
        yield from (_chat(subject) for subject in subjects if subject.documentation)
    for name in _C_MODULES:
        try:
            module_object = importlib.import_module(name)
        except ImportError:
            continue  # not built on this platform
        subjects = _subjects_of_object(name, module_object, "a module of Python's standard library")
        yield from (_chat(subject) for subject in subjects if subject.documentation)


def _python_modules() -> Iterator[tuple[str, Path]]:
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        if parts[-1] == "__init__":
            parts = parts[:-1]
        if parts and parts[0] in sys.stdlib_module_names and not _SKIPPED & set(parts) and _is_public(*parts):
            yield ".".join(parts), path


def _subjects_of_source(name: str, node: ast.Module | ast.ClassDef, owner: str) -> Iterator[_Subject]:
    kind = "module" if isinstance(node, ast.Module) else "class"
    member = "function" if kind == "module" else "method"
    yield _Subject(kind, name, owner, ast.get_docstring(node))
    for child in node.body:
        if isinstance(child, ast.ClassDef) and _is_public(child.name):
            yield from _subjects_of_source(f"{name}.{child.name}", child, f"a class of the {kind} `{name}`")
        elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef) and _is_public(child.name):
            place = f"a {member} of the {kind} `{name}`"
            documentation, parameters = ast.get_docstring(child), ast.unparse(child.args)
            yield _Subject("function", f"{name}.{child.name}", place, documentation, parameters)


def _subjects_of_object(name: str, value: Any, owner: str) -> Iterator[_Subject]:
    if not isinstance(value, types.ModuleType | type):
        yield _Subject("function", name, owner, inspect.getdoc(value), _signature(value))
        return
    kind = "class" if isinstance(value, type) else "module"
    yield _Subject(kind, name, owner, inspect.getdoc(value))
    for key, member in sorted(vars(value).items()):
        owned = getattr(member, "__module__", None) in (None, value.__name__, getattr(value, "__module__", None))
        if _is_public(key) and owned and callable(member):
            member_kind = "class" if isinstance(member, type) else "function" if kind == "module" else "method"
            yield from _subjects_of_object(f"{name}.{key}", member, f"a {member_kind} of the {kind} `{name}`")


def _chat(subject: _Subject) -> list[dict[str, str]]:
    """Question and answer, with a second turn about the call where the parameters are known."""
    questions = _QUESTIONS[subject.kind]
    question = questions[sum(subject.name.encode()) % len(questions)].format(subject.name)
    answer = f"`{subject.name}` is {subject.owner}.\n\n{str(subject.documentation).strip()}"
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    if subject.parameters is not None:
        call = f"`{subject.name}` is called as `{subject.name.rpartition('.')[2]}({subject.parameters})`."
        messages += [{"role": "user", "content": "How do I call it?"}, {"role": "assistant", "content": call}]
    return messages


def _signature(value: Any) -> str | None:
    try:
        return str(inspect.signature(value))[1:-1]
    except (ValueError, TypeError):
        return None  # C functions often have none


def _is_public(*names: str) -> bool:
    return not any(name.startswith("_") for name in names)
