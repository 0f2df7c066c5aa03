"""The errors that users see as a single line, and how values are told in them."""

from typing import Any

import yaml


class UserError(Exception):
    """Something the user can mend: the message says what is wrong, where, and what to do next."""


class OutOfReach(UserError):
    """What a store of objects has may be there again later, as after a fault of the network."""


class RowError(Exception):
    """One row that cannot become a document; the message is the reason written to rejects.jsonl."""


def as_yaml(value: Any) -> str:
    """A value as it stands in a configuration; a text as it is.

    >>> as_yaml({"vocab_size": 400})
    '{vocab_size: 400}'
    >>> as_yaml(None)
    'not set'
    """
    if value is None or isinstance(value, str):
        return "not set" if value is None else value
    text: str = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10**6, sort_keys=False)
    return text.removesuffix("...\n").strip()
