"""Chat templates compiled as transformers compiles them, and rendered in less than half the time.

Templates run in Jinja's sandbox, which is asked for every attribute and every call whether it is allowed. Most are
fields of messages and methods of texts, for which its answer is known; all else it is asked as ever. What is rendered
here is compared with what transformers renders, for a sample of the rows (`proofs.py`).
"""

from collections.abc import Callable
from itertools import accumulate
from types import BuiltinMethodType
from typing import Any

from jinja2.sandbox import ImmutableSandboxedEnvironment
from transformers.utils.chat_template_utils import _compile_jinja_template

CharSpan = tuple[int, int]
"""Characters [start, end) of a rendered text."""

_STRICT = ImmutableSandboxedEnvironment()
_DICT_ATTRIBUTES = frozenset(dir(dict))
_TEXT_METHODS = frozenset(name for name in dir(str) if _STRICT.getattr("", name) == getattr("", name))
"""What the sandbox hands out as it is: nothing private, and not `format`, which it wraps."""


class _QuickSandbox(ImmutableSandboxedEnvironment):
    """Answers as its parent does, the frequent questions at once."""

    def getattr(self, obj: Any, attribute: str) -> Any:
        """`message.content`, `content.strip`"""
        kind = type(obj)
        if kind is dict and attribute in obj and attribute not in _DICT_ATTRIBUTES:
            return obj[attribute]
        if kind is str and attribute in _TEXT_METHODS:
            return getattr(obj, attribute)
        return super().getattr(obj, attribute)

    def call(self, context: Any, called: Any, /, *arguments: Any, **named: Any) -> Any:
        """`content.strip()`; the variables that Jinja hands over by these names are not for methods of texts."""
        if type(called) is BuiltinMethodType and type(called.__self__) is str and called.__name__ in _TEXT_METHODS:
            named.pop("_loop_vars", None)
            named.pop("_block_vars", None)
            return called(*arguments, **named)
        if type(called) is _Generations:
            return called.add(named["caller"])
        return super().call(context, called, *arguments, **named)


class CompiledTemplate:
    """A chat template.

    Args:
        source: the Jinja text.

    Raises:
        jinja2.TemplateSyntaxError: it is not valid.
    """

    def __init__(self, source: str) -> None:
        environment = _compile_jinja_template("").environment.overlay()  # its own, with the same filters and functions
        environment.__class__ = _QuickSandbox
        self._generations = _Generations()
        self._template = environment.from_string(source)
        (tag,) = [name for name, extension in environment.extensions.items() if "generation" in extension.tags]
        environment.extensions[tag] = self._generations
        self._template.globals = dict(self._template.globals)  # of two mappings, which each text would look through

    def render(self, /, **variables: Any) -> tuple[str, list[CharSpan]]:
        """The text, and what the template's `{% generation %}` tags enclose.

        Raises:
            Exception: anything; a template is a program.
        """
        blocks, generations = self._generations.start()
        for block in self._template.root_render_func(self._template.new_context(variables)):
            blocks.append(block)
        if not generations:
            return "".join(blocks), []
        starts = list(accumulate(map(len, blocks), initial=0))
        return "".join(blocks), [(starts[before], starts[before] + length) for before, length in generations]


class _Generations:
    """Takes the place of transformers' `AssistantTracker`, which joins all that is written for every turn."""

    def __init__(self) -> None:
        """Nothing is written yet."""
        self._generation_support = self  # the name that compiled templates call
        self.start()

    def start(self) -> tuple[list[str], list[tuple[int, int]]]:
        """Begin a text: its blocks, to be filled, and for each generation the blocks before it and its length."""
        self._blocks: list[str] = []
        self._found: list[tuple[int, int]] = []
        return self._blocks, self._found

    def add(self, write: Callable[[], str]) -> str:
        """What a generation tag encloses."""
        text = write()
        self._found.append((len(self._blocks), len(text)))
        return text
