"""Kinds of values in the settings of clusters: none of them can become a command, or a second line."""

import re
from typing import Annotated

from pydantic import AfterValidator, Field

from data_tools.config import expand_variables

_HUB_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
_WORD = re.compile(r"[A-Za-z0-9_.,@+:/=&|()*%\[\]-]+")


def _word(text: str) -> str:
    if not _WORD.fullmatch(text):
        raise ValueError("only letters, digits and _.,@+:/=&|()*%[]- may be in it")
    return text


def _one_line(text: str) -> str:
    if not text or not text.isprintable():
        raise ValueError("it must be one line of printable characters")
    return text


Word = Annotated[str, AfterValidator(_word)]
"""Becomes an option of a scheduler: never a space, quote, newline or `$`."""
OneLine = Annotated[str, AfterValidator(_one_line)]
NodePath = Annotated[str, AfterValidator(expand_variables), AfterValidator(_one_line)]
"""A path on the nodes: a leading `~` is the home of whoever the job runs as there."""
Variable = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]


def _label(text: str) -> str:
    if not re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", text):
        raise ValueError("it has a-z, 0-9 and -, begins and ends with a letter or digit, and is 63 long at most")
    return text


def _dotted(text: str) -> str:
    if len(text) > 253 or not re.fullmatch(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?", text):
        raise ValueError("it has a-z, 0-9, - and ., begins and ends with a letter or digit, and is 253 long at most")
    return text


def _label_key(text: str) -> str:
    prefix, slash, name = text.rpartition("/")
    if slash:
        _dotted(prefix)
    _label_value(name)
    return text


def _label_value(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?", text):
        raise ValueError("it has letters, digits, -, _ and ., begins and ends with a letter or digit, and is 63 long")
    return text


def _gibibytes(text: str) -> str:
    if not re.fullmatch(r"[1-9][0-9]{0,5}(Mi|Gi|Ti)", text):
        raise ValueError("it is written as 64Gi, 512Mi or 1Ti")
    return text


def _path_inside(text: str) -> str:
    if not re.fullmatch(r"(/[A-Za-z0-9_][A-Za-z0-9_.-]*)+", text):
        raise ValueError("it is an absolute path of letters, digits, _, . and -")
    return text


def _image(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.:/@-]*", text):
        raise ValueError("it is the name of an image, as registry.example/name:tag")
    return text


def _hub_id(text: str) -> str:
    owner, slash, name = text.partition("/")
    if not slash or not _HUB_NAME.fullmatch(owner) or not _HUB_NAME.fullmatch(name):
        raise ValueError("it is written as owner/name")
    return text


def _hub_name(text: str) -> str:
    if not _HUB_NAME.fullmatch(text):
        raise ValueError("it is the name of a user or an organization")
    return text


HubId = Annotated[str, AfterValidator(_hub_id)]
HubName = Annotated[str, AfterValidator(_hub_name)]
KubernetesLabel = Annotated[str, AfterValidator(_label)]
"""Names of namespaces."""
KubernetesName = Annotated[str, AfterValidator(_dotted)]
"""Names of most other things there."""
LabelKey = Annotated[str, AfterValidator(_label_key)]
LabelValue = Annotated[str, AfterValidator(_label_value)]
Gibibytes = Annotated[str, AfterValidator(_gibibytes)]
PathInside = Annotated[str, AfterValidator(_path_inside)]
"""A folder in a container."""
Image = Annotated[str, AfterValidator(_image)]


def bytes_of(size: str) -> int:
    """Bytes of a size.

    >>> bytes_of("64Gi")
    68719476736
    """
    return int(size[:-2]) * {"Mi": 1 << 20, "Gi": 1 << 30, "Ti": 1 << 40}[size[-2:]]
