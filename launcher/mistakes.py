"""What is wrong with a configuration, in one line: the key, what it needs, what it is, and an example."""

import difflib
from collections.abc import Sequence
from datetime import date
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from data_tools.errors import as_yaml

Problem = Any
"""One item of `ValidationError.errors()`."""

_KINDS = {"int": "a whole number", "float": "a number", "bool": "true or false", "date": "a date", "string": "a text"}
_BOUNDS = {
    "greater_than": "a number above {gt}",
    "greater_than_equal": "a number of at least {ge}",
    "less_than": "a number below {lt}",
    "less_than_equal": "a number of at most {le}",
    "too_short": "at least {min_length} in its list",
    "string_too_short": "a text of at least {min_length} characters",
    "string_pattern_mismatch": "a text that matches {pattern}",
    "finite_number": "a finite number",
}
_LONGEST = 80
_KEYS = 6


def explain(error: ValidationError, values: dict[str, Any], root: type[BaseModel]) -> str:
    """The first problem.

    Args:
        error: what pydantic found.
        values: the configuration.
        root: the class of the whole configuration.
    """

    def urgency(problem: Problem) -> tuple[bool, int]:
        # Where a value may be a name or a section, both were tried: what is deepest is about what was meant.
        return problem["type"] != "extra_forbidden", -len(_places(problem["loc"], values))

    first = min(error.errors(), key=urgency)
    places = _places(first["loc"], values)
    if first["type"] == "missing":
        place = [*places, first["loc"][-1]]
        key = _key(place)
        return f"{key} is missing; set it in the file, or give {key}=… on the command line{_example(place, root)}"
    if first["type"] == "extra_forbidden":
        return _unknown(places, root)
    problems = [problem for problem in error.errors() if _places(problem["loc"], values) == places]
    key = _key(places) or "the file"
    if said := [problem["msg"] for problem in problems if problem["type"] == "value_error"]:
        return f"{key}: {said[0].removeprefix('Value error, ')}{_it_is(first['input'])}"
    needs = " or ".join(dict.fromkeys(_need(problem, places, root) for problem in problems))
    listed = any(problem["type"] == "literal_error" for problem in problems)
    return f"{key} needs {needs}, not {_shown(first['input'])}{'' if listed else _example(places, root)}"


def _key(places: Sequence[str | int]) -> str:
    return ".".join(map(str, places))


def _unknown(places: list[str | int], root: type[BaseModel]) -> str:
    *parents, last = places
    valid = _valid_keys(parents, root)
    near = difflib.get_close_matches(str(last).lower(), valid, n=1)
    if near:
        return f"unknown key {_key(places)}; did you mean {_key([*parents, near[0]])}?"
    return f"unknown key {_key(places)}; valid keys: {', '.join(valid)}{_example(parents, root)}"


def _need(problem: Problem, places: list[str | int], root: type[BaseModel]) -> str:
    kind, context = problem["type"], problem.get("ctx", {})
    match kind:
        case "literal_error":
            *others, last = [word.strip("'") for word in context["expected"].replace(" or ", ", ").split(", ")]
            return f"one of {', '.join(others)}, {last}" if others else str(last)
        case "model_type" | "model_attributes_type":
            keys = _valid_keys(places, root)
            return f"the keys {', '.join(keys[:_KEYS])}{', …' if len(keys) > _KEYS else ''} below it"
        case "list_type" | "tuple_type":
            return "a list"
        case "dict_type":
            return "keys with values below it"
    if kind in _BOUNDS:
        limits = {name: f"{limit:g}" if isinstance(limit, float) else limit for name, limit in context.items()}
        return _BOUNDS[kind].format(**limits)
    return _KINDS.get(kind.split("_")[0], str(problem["msg"]))


def _example(places: Sequence[str | int], root: type[BaseModel]) -> str:
    """What the nearest named place may look like: the example of its field, or its default."""
    names = [place for place in places if isinstance(place, str)]
    field = _field(places, root)
    if field is None:
        return ""
    value = field.examples[0] if field.examples else field.default
    if isinstance(value, BaseModel):
        value = dict(list(value.model_dump(mode="json").items())[:1])
    if not isinstance(value, str | int | float | date | list | tuple | dict) or value == ():
        return ""
    return f"; for example `{names[-1]}: {as_yaml(list(value) if isinstance(value, tuple) else value)}`"


def _it_is(value: Any) -> str:
    return f" (it is {_shown(value)})" if isinstance(value, str | int | float) and len(str(value)) < _LONGEST else ""


def _shown(value: Any) -> str:
    """A value as it stands in the file; of long ones what they are."""
    text = "null" if value is None else as_yaml(value) or "''"
    if len(text) < _LONGEST:
        return text
    return "keys with values" if isinstance(value, dict) else f"{text[:_LONGEST]}…"


def _places(location: tuple[str | int, ...], values: Any) -> list[str | int]:
    """The parts of pydantic's location that are places in the YAML; the others name the alternatives it tried."""
    places: list[str | int] = []
    for part in location:
        is_place = part in values if isinstance(values, dict) else isinstance(values, list) and isinstance(part, int)
        if is_place:
            places.append(part)
            values = values[part]
    return places


def _valid_keys(places: Sequence[str | int], root: type[BaseModel]) -> list[str]:
    """The keys of the section at a place."""
    section = root
    for part in places:
        if isinstance(part, str):
            section = _section_in(section.model_fields[part].annotation) or section
    return list(section.model_fields)


def _field(places: Sequence[str | int], root: type[BaseModel]) -> FieldInfo | None:
    """The setting at a place, or around it: of a list for its items."""
    section, field = root, None
    for part in places:
        if isinstance(part, str) and part in section.model_fields:
            field = section.model_fields[part]
            section = _section_in(field.annotation) or section
    return field


def _section_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for argument in get_args(annotation) if (found := _section_in(argument))), None)
