"""YAML that every reader takes for the same: Go's, which Kubernetes uses, and Python's."""

import re
from typing import Any

import yaml


class _Dumper(yaml.SafeDumper):
    """Texts are quoted unless every reader of YAML takes them for texts: to some, `y` is true and 1e3 a number."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_PLAIN = re.compile(r"[A-Za-z/][A-Za-z0-9_/.-]*[A-Za-z0-9_/]")
_WORDS = frozenset({"yes", "no", "on", "off", "true", "false", "null", "nan", "inf"})


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    plain = _PLAIN.fullmatch(text) and text.lower() not in _WORDS
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if plain else '"')


_Dumper.add_representer(str, _text)


def plain_yaml(value: dict[str, Any]) -> str:
    """A value as YAML."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=10**6)
